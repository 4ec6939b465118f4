"""Takes hilum.toml, the environment and flags, each weighing more than those before; gives Settings. Opens no
store.

A key that no setting has is an error that names it, wherever it comes from. The environment spells
`http.listen` as HILUM_HTTP_LISTEN and the store as HILUM_STORE; lists are separated by commas there. Sizes
are in bytes, times in seconds. Paths in hilum.toml are relative to its folder.
"""

from __future__ import annotations

import difflib
import ipaddress
import os
import re
import tomllib
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal, NamedTuple

import msgspec
from msgspec import Meta

from hilum.errors import BadQuery, StoreMissing

FILE_NAME = "hilum.toml"

# Variables of the environment that are ours and no settings.
NOT_SETTINGS = frozenset(
    ("HILUM_CONFIG", "HILUM_PASSWORD", "HILUM_SANITIZE", "HILUM_ANNOTATE", "HILUM_PLANT_OVERREAD")
)
_PASSWORD = re.compile("HILUM_PEERS_[A-Z0-9_]+_PASSWORD")  # of a peer

_PATH = {"path": True}
_TRUE, _FALSE = ("1", "true", "yes", "on"), ("0", "false", "no", "off")

Count = Annotated[int, Meta(ge=1)]
Seconds = Annotated[float, Meta(gt=0)]


class Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One table of hilum.toml. The description of a field is its comment there."""


class Http(Section, frozen=True):
    """Where the server listens, and how it is called from outside."""

    listen: Annotated[
        str, Meta(description="Address and port; port 0 takes a free one. Empty: HTTP is not served.")
    ] = "127.0.0.1:8080"
    workers: Annotated[Count, Meta(description="Processes that answer requests on that port.")] = 1
    base_url: Annotated[
        str,
        Meta(
            description="What RetrieveURL and bulk data URIs begin with, say "
            '"https://pacs.example.org/dicom-web". Empty: from the request\'s Host.'
        ),
    ] = ""
    trusted_proxies: Annotated[
        tuple[str, ...],
        Meta(description="Addresses or networks of proxies whose Forwarded and X-Forwarded-* are believed."),
    ] = ()
    allowed_hosts: Annotated[
        tuple[str, ...],
        Meta(
            description='Names under which the server may be asked; "*" for any. Empty: localhost, '
            "this machine's name and plain addresses."
        ),
    ] = ()
    threads: Annotated[Count, Meta(description="Blocking calls that one process has under way at once.")] = 16


class Limits(Section, frozen=True):
    """What one client may ask for."""

    header_bytes: Annotated[Count, Meta(description="Request line and headers.")] = 64 << 10
    header_seconds: Annotated[Seconds, Meta(description="Until the headers are there.")] = 30.0
    idle_seconds: Annotated[
        Seconds, Meta(description="Without a byte of the body sent, or of the answer taken.")
    ] = 120.0
    keep_alive_seconds: Annotated[Count, Meta(description="Between two requests of a connection.")] = 75
    stop_seconds: Annotated[Count, Meta(description="For what is under way when the server stops.")] = 30
    connections: Annotated[Count, Meta(description="At once, in each process.")] = 2000
    body_bytes: Annotated[Count, Meta(description="A request's body.")] = 64 << 30
    parts: Annotated[Count, Meta(description="Parts of a multipart body.")] = 100_000
    frames: Annotated[Count, Meta(description="Frames in one request.")] = 2000
    ranges: Annotated[Count, Meta(description="Byte ranges in one request.")] = 16
    uids: Annotated[Count, Meta(description="Values in a list of UIDs.")] = 10_000
    query_seconds: Annotated[
        Seconds, Meta(description="For a search by attributes that are not indexed.")
    ] = 5.0


class Cors(Section, frozen=True):
    """Pages of other origins, and what a browser isolates."""

    origins: Annotated[
        tuple[str, ...],
        Meta(description='Origins whose pages may ask, "https://viewer.example.org" say; "*" for any.'),
    ] = ()
    resource_policy: Annotated[
        Literal["", "same-origin", "same-site", "cross-origin"],
        Meta(
            description="Cross-Origin-Resource-Policy of all answers. Empty: cross-origin where origins are "
            "named, else same-origin."
        ),
    ] = ""
    isolate_pages: Annotated[
        bool,
        Meta(description="Serve pages with COOP and COEP, so that viewers have SharedArrayBuffer."),
    ] = True


class Auth(Section, frozen=True):
    """Who may ask."""

    method: Annotated[
        Literal["none", "basic"], Meta(description='"none", or "basic": names and passwords.')
    ] = "none"
    users_file: Annotated[
        str,
        Meta(description="Names and hashes of passwords; `hilum init --user NAME` writes it.", extra=_PATH),
    ] = "hilum.users"


class Search(Section, frozen=True):
    """QIDO-RS."""

    limit_default: Annotated[
        int, Meta(ge=0, description="Results where no limit is asked for; 0: limit_max.")
    ] = 0
    limit_max: Annotated[Count, Meta(description="Results of one request at most.")] = 5000
    empty_status: Annotated[
        Literal[200, 204],
        Meta(description="Status where nothing is found: 200 with [], or 204 as older editions had it."),
    ] = 200


class Storing(Section, frozen=True):
    """What may change what is stored."""

    conflicts: Annotated[
        Literal["keep-first", "replace"],
        Meta(description="When other bytes come under a SOP Instance UID that is stored."),
    ] = "keep-first"
    allow_delete: Annotated[bool, Meta(description="Answer DELETE.")] = False


class Pixels(Section, frozen=True):
    """Worker processes that decode, encode and render."""

    workers: Annotated[Count, Meta(description="Of each process that answers requests.")] = 2
    seconds_max: Annotated[Seconds, Meta(description="For one piece of work.")] = 30.0
    memory_bytes: Annotated[Count, Meta(description="Of one worker.")] = 2 << 30
    cache_bytes: Annotated[int, Meta(ge=0, description="Decoded frames that are kept.")] = 256 << 20


class Log(Section, frozen=True):
    """A line for each request, without patient data: paths with UIDs, never the query."""

    file: Annotated[str, Meta(description="Empty: standard error.", extra=_PATH)] = ""
    bytes_max: Annotated[Count, Meta(description="Of one file, before the next is begun.")] = 16 << 20
    files: Annotated[Count, Meta(description="Older files that are kept.")] = 8
    requests: Annotated[bool, Meta(description="Write a line for each request.")] = True


class Viewer(Section, frozen=True):
    """A viewer that is served beside the data."""

    name: Annotated[str, Meta(description='"ohif", the folder of a static viewer, or empty.')] = ""
    cache: Annotated[
        str,
        Meta(description="Where a viewer that was fetched is kept. Empty: the user's cache.", extra=_PATH),
    ] = ""


class Dimse(Section, frozen=True):
    """DIMSE: who we are to DICOM nodes, and how they are served."""

    listen: Annotated[
        str, Meta(description='Address and port, "127.0.0.1:11112" say. Empty: DIMSE is not served.')
    ] = ""
    title: Annotated[str, Meta(description="Our AE title.")] = "HILUM"
    processes: Annotated[Count, Meta(description="Processes that serve associations.")] = 2
    calling_titles: Annotated[
        tuple[str, ...], Meta(description="AE titles that are accepted. Empty: any.")
    ] = ()
    addresses: Annotated[
        tuple[str, ...], Meta(description="Addresses and networks that are accepted. Empty: any.")
    ] = ()
    check_called: Annotated[bool, Meta(description="Refuse who calls us by another title.")] = False
    associations: Annotated[Count, Meta(description="At once.")] = 200
    unknown_classes: Annotated[
        bool, Meta(description="Take objects of SOP classes that nobody knows, private ones too.")
    ] = False
    classes: Annotated[tuple[str, ...], Meta(description="Further storage SOP classes, by UID.")] = ()
    pdu_bytes: Annotated[int, Meta(ge=4096, le=1 << 20, description="The largest PDU that we take.")] = (
        128 << 10
    )
    memory_bytes: Annotated[
        Count,
        Meta(description="Of data sets that are coming in, for one process; the rest lies on the disk."),
    ] = 256 << 20
    artim_seconds: Annotated[Seconds, Meta(description="Until an association is agreed, or closed.")] = 30.0
    idle_seconds: Annotated[Seconds, Meta(description="Without a byte of the peer.")] = 300.0
    answer_seconds: Annotated[Seconds, Meta(description="For a peer's answer to a request of ours.")] = 60.0
    connect_seconds: Annotated[Seconds, Meta(description="For a connection to a peer.")] = 10.0
    stop_seconds: Annotated[Seconds, Meta(description="For what is under way when the server stops.")] = 10.0
    query_seconds: Annotated[
        Seconds, Meta(description="For what has to be read from heads to answer one C-FIND.")
    ] = 60.0
    tls_certificate: Annotated[
        str,
        Meta(description="Our certificate, in PEM. Empty: we show none, and serve without TLS.", extra=_PATH),
    ] = ""
    tls_key: Annotated[str, Meta(description="Its key, if that is not in the same file.", extra=_PATH)] = ""
    tls_authorities: Annotated[
        str, Meta(description="Whose certificates we believe, beside those of the system.", extra=_PATH)
    ] = ""
    tls_mutual: Annotated[bool, Meta(description="Ask those who come for a certificate.")] = False
    report_retry_seconds: Annotated[
        Seconds,
        Meta(description="Storage commitment: until a report that failed is sent again; doubled each time."),
    ] = 10.0
    report_hours: Annotated[Seconds, Meta(description="Storage commitment: until a report is given up.")] = (
        72.0
    )


class Peer(Section, frozen=True):
    """Another archive, under a name of your choice: a DICOM node, a DICOMweb server, or both in one."""

    title: Annotated[str, Meta(description="AE title.")] = ""
    host: Annotated[str, Meta(description="Name or address of the DICOM node.")] = ""
    port: Annotated[int, Meta(ge=1, le=0xFFFF, description="Where the DICOM node listens.")] = 104
    tls: Annotated[bool, Meta(description="The DICOM node is spoken to by TLS.")] = False
    associations: Annotated[Count, Meta(description="With the DICOM node at once, in a C-MOVE.")] = 1
    url: Annotated[str, Meta(description="DICOMweb: what /studies is appended to.")] = ""
    user: Annotated[str, Meta(description="DICOMweb: who we are there.")] = ""
    password: Annotated[
        str, Meta(description="DICOMweb. Or $HILUM_PEERS_NAME_PASSWORD; else it is asked for.")
    ] = ""


class Settings(Section, frozen=True):
    """All settings; each has a default."""

    store: Annotated[str, Meta(description="Folder of the store.", extra=_PATH)] = "./hilum-store"
    http: Http = Http()
    limits: Limits = Limits()
    cors: Cors = Cors()
    auth: Auth = Auth()
    search: Search = Search()
    storing: Storing = Storing()
    pixels: Pixels = Pixels()
    log: Log = Log()
    viewer: Viewer = Viewer()
    dimse: Dimse = Dimse()
    peers: Annotated[dict[str, Peer], Meta(description="Tables of peers, one for each:")] = {}


class Field(NamedTuple):
    """One setting: what to call it, and what it is."""

    name: str  # "http.listen"
    type: msgspec.inspect.Type
    default: Any
    description: str
    is_path: bool


def _fields(section: type[msgspec.Struct], prefix: str = "") -> Iterable[Field]:
    inspected = msgspec.inspect.type_info(section)
    assert isinstance(inspected, msgspec.inspect.StructType)
    for field in inspected.fields:
        if isinstance(field.type, msgspec.inspect.StructType):
            yield from _fields(field.type.cls, f"{field.name}.")
            continue
        inner, description, is_path = field.type, "", False
        while isinstance(inner, msgspec.inspect.Metadata):
            description = (inner.extra_json_schema or {}).get("description", description)
            is_path = is_path or bool(inner.extra and inner.extra.get("path"))
            inner = inner.type
        yield Field(prefix + field.name, inner, field.default, description, is_path)


FIELDS = {field.name: field for field in _fields(Settings)}
_BY_VARIABLE = {f"HILUM_{name.upper().replace('.', '_')}": name for name in FIELDS}


def load(
    path: str | None = None,
    environment: Mapping[str, str] = os.environ,
    flags: Mapping[str, Any] | None = None,
) -> Settings:
    """The settings out of a file, the environment and flags ("http.listen": value), each over those before.

    Without a path the file is $HILUM_CONFIG, else ./hilum.toml if that is there.

    Raises:
        BadQuery: a key that is no setting, or a value that it can't have.
        StoreMissing: the file that was named is not there.
    """
    values: dict[str, Any] = {}
    origin: dict[str, str] = {}
    path = path or environment.get("HILUM_CONFIG") or (FILE_NAME if os.path.exists(FILE_NAME) else None)
    layers = [(path, _from_file(path))] if path else []
    layers += [("the environment", _from_environment(environment)), ("the flags", _from_flags(flags or {}))]
    for source, found in layers:
        for name, value in found.items():
            values[name] = value
            origin[name] = source
    tree: dict[str, Any] = {}
    for name, value in values.items():
        *section, key = name.split(".")
        (tree.setdefault(section[0], {}) if section else tree)[key] = value
    peers = _peers(tree.pop("peers", {}), origin.get("peers", ""), environment)
    try:
        settings = msgspec.structs.replace(msgspec.convert(tree, Settings), peers=peers)
    except msgspec.ValidationError as failure:
        # "... - at `$.http.workers`"
        what, _, where = str(failure).partition(" - at `$.")
        name = where.rstrip("`").split("[")[0]
        raise BadQuery(f"{origin.get(name, 'settings')}: {name}: {what}") from None
    _check(settings, origin)
    return settings


def _peers(tables: Any, source: str, environment: Mapping[str, str]) -> dict[str, Peer]:
    """The tables of peers. The environment has a password of each, and nothing else."""
    found = {}
    for name, table in tables.items() if isinstance(tables, dict) else [("", tables)]:
        try:
            peer = msgspec.convert(table, Peer)
        except msgspec.ValidationError as failure:
            what, _, where = str(failure).partition(" - at `$.")
            raise BadQuery(
                f"{source}: {'.'.join(filter(None, ('peers', name, where.rstrip('`'))))}: {what}"
            ) from None
        password = environment.get(password_variable(name))
        found[name] = peer if password is None else msgspec.structs.replace(peer, password=password)
        if not peer.url and not (peer.title and peer.host):
            raise BadQuery(f"{source}: peers.{name} needs a title and a host, or a url")
    return found


def password_variable(peer: str) -> str:
    """The variable of the environment with the password of a peer."""
    return f"HILUM_PEERS_{re.sub('[^A-Z0-9]', '_', peer.upper())}_PASSWORD"


def _from_file(path: str) -> dict[str, Any]:
    try:
        with open(path, "rb") as file:
            tree = tomllib.load(file)
    except FileNotFoundError:
        raise StoreMissing(f"there is no {path}; write one with: hilum init") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as failure:
        raise BadQuery(f"{path}: {failure}") from None
    folder = os.path.dirname(os.path.abspath(path))
    found: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict) and any(name.startswith(f"{key}.") for name in FIELDS):
            found.update({f"{key}.{name}": inside for name, inside in value.items()})
        else:
            found[key] = value
    for name in found:
        _known(name, path)
    # Defaults too: a line of the template means the same with and without its "#".
    for name in (field.name for field in FIELDS.values() if field.is_path):
        value = found.get(name, FIELDS[name].default)
        if isinstance(value, str) and value:
            found[name] = os.path.normpath(os.path.join(folder, os.path.expanduser(value)))
    return found


def _from_environment(environment: Mapping[str, str]) -> dict[str, Any]:
    found = {}
    for variable, text in environment.items():
        if (
            variable.startswith("HILUM_")
            and variable not in NOT_SETTINGS
            and not _PASSWORD.fullmatch(variable)
        ):
            name = _BY_VARIABLE.get(variable)
            if name is None:
                near = difflib.get_close_matches(variable, _BY_VARIABLE, 1)
                hint = f"; did you mean {near[0]}?" if near else ""
                raise BadQuery(f"the environment: {variable} is no setting{hint}")
            found[name] = _value(FIELDS[name], text, variable)
    return found


def _from_flags(flags: Mapping[str, Any]) -> dict[str, Any]:
    found = {}
    for name, value in flags.items():
        field = _known(name, "the flags")
        found[name] = _value(field, value, name) if isinstance(value, str) else value
    return found


def _known(name: str, source: str) -> Field:
    if name not in FIELDS:
        near = difflib.get_close_matches(name, FIELDS, 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise BadQuery(f"{source}: {name} is no setting{hint}")
    return FIELDS[name]


def _value(field: Field, text: str, source: str) -> Any:
    """Text of the environment or of a flag as a value of the setting's type."""
    kind = field.type
    if isinstance(kind, msgspec.inspect.DictType):
        raise BadQuery(f"{source}: {field.name} are tables, which stand in {FILE_NAME} alone")
    try:
        if isinstance(kind, msgspec.inspect.BoolType):
            if text.lower() not in (*_TRUE, *_FALSE):
                raise BadQuery(f"{source}: {text!r} is neither true nor false")
            return text.lower() in _TRUE
        if isinstance(kind, msgspec.inspect.VarTupleType):
            return [part.strip() for part in text.split(",") if part.strip()]
        if isinstance(field.default, int):
            return int(text)
        if isinstance(field.default, float):
            return float(text)
    except ValueError:
        raise BadQuery(f"{source}: {text!r} is no number") from None
    return text


def parse_listen(text: str) -> tuple[str, int]:
    """(host, port) of "127.0.0.1:8080", "[::1]:0" or ":8080", which is 127.0.0.1.

    Raises:
        BadQuery: it is no address with a port.
    """
    host, colon, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        colon = ""
    if not colon or not port.isascii() or not port.isdigit() or int(port) > 0xFFFF:
        raise BadQuery(f"{text!r} is no address with a port, as 127.0.0.1:8080 is")
    return host or "127.0.0.1", int(port)


def _check(settings: Settings, origin: Mapping[str, str]) -> None:
    """What a type can't say."""

    def refuse(name: str, words: str) -> BadQuery:
        return BadQuery(f"{origin.get(name, 'settings')}: {name}: {words}")

    for name, listen in (("http.listen", settings.http.listen), ("dimse.listen", settings.dimse.listen)):
        try:
            if listen:
                parse_listen(listen)
        except BadQuery as failure:
            raise refuse(name, str(failure)) from None
    base = settings.http.base_url
    if base and (not base.startswith(("http://", "https://")) or any(c in base for c in " ?#\r\n")):
        raise refuse("http.base_url", f"{base!r} is no URL that others can be appended to")
    for proxy in settings.http.trusted_proxies:
        try:
            ipaddress.ip_network(proxy, strict=False)
        except ValueError:
            raise refuse("http.trusted_proxies", f"{proxy!r} is no address and no network") from None
    for allowed in settings.cors.origins:
        scheme, _, host = allowed.partition("://")
        if allowed not in ("*", "null") and (scheme not in ("http", "https") or not host or "/" in host):
            raise refuse("cors.origins", f"{allowed!r} is no origin, as https://viewer.example.org is")


def template() -> str:
    """The text of a hilum.toml with all settings, each at its default and commented out."""
    lines = [
        "# Settings of Hilum. What is commented out is the default. Sizes are in bytes, times in seconds.",
        "# The environment goes before this file (HILUM_HTTP_LISTEN for http.listen), flags go before both.",
        "",
    ]
    section = ""
    inspected = msgspec.inspect.type_info(Settings)
    assert isinstance(inspected, msgspec.inspect.StructType)
    about = {field.name: getattr(field.type, "cls", Settings).__doc__ for field in inspected.fields}
    for field in FIELDS.values():
        if field.name == "peers":
            continue
        prefix, _, key = field.name.rpartition(".")
        if prefix != section:
            section = prefix
            lines += ["", f"# {about[prefix]}", f"[{prefix}]", ""]
        lines += [f"# {field.description}", f"#{key} = {_toml(field.default)}"]
    lines += ["", f"# {FIELDS['peers'].description} {Peer.__doc__}", "#", "# [peers.NAME]"]
    lines += [
        f"# {field.name} = {_toml(field.default)}  # {field.description}" for field in _fields(Peer, "")
    ]
    return "\n".join(lines) + "\n"


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple):
        return f"[{', '.join(map(_toml, value))}]"
    return f'"{value}"' if isinstance(value, str) else str(value)
