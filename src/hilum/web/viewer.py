"""Takes the settings of a viewer; gives the routes that serve it on our own origin. Builds nothing.

"ohif" is the npm package of OHIF, fetched once into a cache folder, held against the digest that is written
here, and served at /ohif/. Any other name is the folder of a static viewer, served at /viewer/; since many
builds were made for the top of a host, its files answer there too where we have nothing ourselves.
"""

from __future__ import annotations

import base64
import contextlib
import gzip
import hashlib
import html
import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from typing import NamedTuple
from urllib.parse import quote

import orjson
from starlette.requests import Request
from starlette.routing import Route

from hilum.errors import BadQuery, Unsupported
from hilum.settings import Viewer
from hilum.web import static
from hilum.web.answers import Answer
from hilum.web.context import ROOT
from hilum.web.errors import BadPath

_FETCH_SECONDS_MAX = 900


class Package(NamedTuple):
    """One version of an npm package, and what it must be."""

    name: str
    version: str
    integrity: str  # as npm writes it: "sha512-" and base64

    @property
    def archive(self) -> str:
        """The file name that `npm pack` gives it."""
        return f"{self.name.removeprefix('@').replace('/', '-')}-{self.version}.tgz"


OHIF = Package(
    "@ohif/app",
    "3.12.10",
    "sha512-0kuF66Mq9c9dMD++bUsTjMrJpXJwaZhz9B4uS244DawAjSkTwIYFU93pxPuRUQixaRi7QAHlF3Fe1qudBlZrmA==",
)
# Of what _adapted makes of a package: another number here, and caches fill anew.
_RECIPE = 1

# The viewer gets everything from here, and can't be made to talk to anybody else. Its codecs are compiled
# at run time, and its scripts and styles stand in its page.
_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; worker-src 'self' blob:; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:; "
    "connect-src 'self' data: blob:; media-src 'self' blob:; object-src 'self' blob:; "
    "frame-src 'self' blob:; base-uri 'self'; frame-ancestors 'self'"
)


class Link(NamedTuple):
    """How our own page leads to the viewer."""

    label: str
    path: str  # relative to the top, "ohif/"


def link_of(settings: Viewer) -> Link | None:
    """The link to the viewer that is served; None where there is none."""
    if not settings.name:
        return None
    return Link("OHIF", "ohif/") if settings.name == "ohif" else Link("Viewer", "viewer/")


def prepare(settings: Viewer, say: Callable[[str], None] = lambda words: None) -> None:
    """Have the viewer at hand before the server starts; fetch it if that was not done before.

    Raises:
        Unsupported: it can't be fetched; the words say what to do.
        BadQuery: the folder is not there, or holds no index.html.
    """
    if settings.name == "ohif":
        if not os.path.isdir(_folder(settings)):
            install(OHIF, _cache(settings), say)
    elif settings.name and not os.path.isfile(os.path.join(settings.name, "index.html")):
        raise BadQuery(
            f'viewer.name: {settings.name} is neither "ohif" nor a folder with the index.html of a viewer'
        )


def routes(settings: Viewer) -> list[Route]:
    """Where the viewer is served: nowhere, at /ohif/, or at /viewer/."""
    if not settings.name:
        return []
    if settings.name == "ohif":
        ohif = _Ohif(_folder(settings))
        return [
            Route("/ohif", ohif.top),
            Route("/ohif/index.html", ohif.index),
            Route("/ohif/app-config.js", ohif.configuration),
            Route("/ohif/{path:path}", ohif.file),
        ]
    viewer = _Static(settings.name)
    return [
        Route("/viewer", viewer.top),
        Route("/viewer/{path:path}", viewer.file),
        Route("/{path:path}", viewer.elsewhere),
    ]


class _Single:
    """A single-page application: what is no file of it is a place inside of it, and answers its page."""

    def __init__(self, folder: static.Folder) -> None:
        self._folder = folder

    async def top(self, request: Request) -> Answer:
        """Its page. It refers to other files from its own place, so that has to end in a slash."""
        path = request.scope["path"]
        if not path.endswith("/"):
            query = request.scope["query_string"].decode("latin-1")
            return static.redirect(f"{path.rpartition('/')[2]}/{'?' + query if query else ''}")
        return await self.index(request)

    async def file(self, request: Request) -> Answer:
        """A file, or the page."""
        path = request.path_params["path"]
        try:
            return await self._folder.answer(request, path)
        except BadPath:
            if static.is_of_known_type(path):
                raise
            return await self.index(request)

    async def index(self, request: Request) -> Answer:
        """The page itself."""
        return await self._folder.answer(request, "index.html")


class _Static(_Single):
    """A folder that was built by others, as it is."""

    def __init__(self, folder: str) -> None:
        super().__init__(static.Folder(folder))

    async def elsewhere(self, request: Request) -> Answer:
        """A file of a build that thinks it is at the top of its host."""
        return await self._folder.answer(request, request.path_params["path"])


class _Ohif(_Single):
    """OHIF as install() left it. Its page and its configuration fit the path they are asked at."""

    def __init__(self, folder: str) -> None:
        super().__init__(static.Folder(folder, (b"content-security-policy", _POLICY.encode())))
        with open(os.path.join(folder, "index.html"), encoding="utf-8") as file:
            self._index = file.read()

    async def index(self, request: Request) -> Answer:
        base = quote(f"{static.prefix_of(request)}/ohif/")
        text = self._index
        for attribute in ("href", "src", "content"):
            text = text.replace(f'{attribute}="/', f'{attribute}="{html.escape(base)}')
        text = text.replace("PUBLIC_URL = '/'", f"PUBLIC_URL = {_script(base)}")
        policy = (b"content-security-policy", _POLICY.encode())
        return static.page(text.encode(), "text/html; charset=utf-8", policy)

    async def configuration(self, request: Request) -> Answer:
        """GET /ohif/app-config.js"""
        text = configuration(static.prefix_of(request))
        return static.page(text.encode(), "text/javascript; charset=utf-8")


def configuration(prefix: str) -> str:
    """The script that OHIF reads its settings from. `prefix` is what a proxy has before our paths."""
    source = {
        "friendlyName": "Hilum",
        "name": "hilum",
        "qidoRoot": prefix + ROOT,
        "wadoRoot": prefix + ROOT,
        "wadoUriRoot": f"{prefix}/wado",
        "qidoSupportsIncludeField": True,
        "supportsFuzzyMatching": True,
        "supportsWildcard": True,
        "supportsStow": True,
        "supportsReject": False,
        "dicomUploadEnabled": True,
        "enableStudyLazyLoad": True,
        "imageRendering": "wadors",
        "thumbnailRendering": "wadors",
        "singlepart": "bulkdata,video,pdf",
        # A transfer syntax in quotes is more than it reads back itself.
        "omitQuotationForMultipartRequest": True,
        "bulkDataURI": {"enabled": True, "relativeResolution": "studies"},
    }
    config = {
        "name": "hilum",
        "routerBasename": f"{prefix}/ohif/",
        "extensions": [],
        "modes": [],
        "showStudyList": True,
        "maxNumberOfWebWorkers": 3,
        "showWarningMessageForCrossOrigin": True,
        "showCPUFallbackMessage": True,
        "showLoadingIndicator": True,
        "strictZSpacingForVolumeViewport": True,
        "groupEnabledModesFirst": True,
        "defaultDataSourceName": "hilum",
        "dataSources": [
            {
                "namespace": "@ohif/extension-default.dataSourcesModule.dicomweb",
                "sourceName": "hilum",
                "configuration": source,
            }
        ],
    }
    # Without the first line the viewports stay black: a codec in this build thinks that it runs in Node.js.
    return f'window.__filename = ""; window.__dirname = "/";\nwindow.config = {_script(config)};\n'


def _script(value: object) -> str:
    """A value as a literal that may stand in a script, also inside of a page."""
    return orjson.dumps(value).decode().replace("<", "\\u003c")


# --- Fetching ----------------------------------------------------------------------


def _cache(settings: Viewer) -> str:
    if settings.cache:
        return settings.cache
    home = os.environ.get("XDG_CACHE_HOME", "")
    return os.path.join(home if os.path.isabs(home) else os.path.expanduser("~/.cache"), "hilum")


def _folder(settings: Viewer) -> str:
    return os.path.join(_cache(settings), f"ohif-{OHIF.version}-{_RECIPE}")


def install(package: Package, cache: str, say: Callable[[str], None]) -> None:
    """Fetch a package, unless its archive lies in the cache, and unpack its `dist`, whole or not at all.

    Raises:
        Unsupported: it can't be fetched, or is not what it must be.
    """
    os.makedirs(cache, exist_ok=True)
    target = os.path.join(cache, f"ohif-{package.version}-{_RECIPE}")
    with tempfile.TemporaryDirectory(prefix=".fetching-", dir=cache) as scratch:
        archive = os.path.join(cache, package.archive)
        if not os.path.exists(archive):
            say(f"Fetching {package.name} {package.version} into {cache}")
            archive = _fetch(package, cache, scratch)
        _check(package, archive)
        folder = os.path.join(scratch, "dist")
        _unpack(archive, folder)
        with contextlib.suppress(FileExistsError, OSError):  # another server was quicker
            os.rename(folder, target)
    if not os.path.isdir(target):
        raise Unsupported(f"{package.name} can't be kept in {cache}")


def _fetch(package: Package, cache: str, scratch: str) -> str:
    """Have npm fetch a package; gives the path of the archive."""
    asked = f"{package.name}@{package.version}"
    elsewhere = (
        f"or run `npm pack {asked}` where that works, put {package.archive} into {cache}, and start again"
    )
    npm = shutil.which("npm")
    if npm is None:
        raise Unsupported(
            f"{asked} is fetched with npm, which is not here: install it (Debian: apt-get install npm), "
            f"{elsewhere}; --viewer DIR serves a viewer that you have"
        )
    command = [npm, "pack", asked, "--silent", "--ignore-scripts", "--pack-destination", scratch]
    try:
        done = subprocess.run(
            command, cwd=scratch, capture_output=True, text=True, timeout=_FETCH_SECONDS_MAX, check=False
        )
    except subprocess.TimeoutExpired:
        raise Unsupported(
            f"npm did not get {asked} in {_FETCH_SECONDS_MAX} seconds: try again, {elsewhere}"
        ) from None
    archive = os.path.join(scratch, package.archive)
    if done.returncode or not os.path.exists(archive):
        words = (done.stderr.strip() or done.stdout.strip() or f"exit status {done.returncode}")[-300:]
        raise Unsupported(f"npm could not get {asked} ({words}): try again, {elsewhere}")
    return archive


def _check(package: Package, archive: str) -> None:
    with open(archive, "rb") as file:
        digest = hashlib.file_digest(file, "sha512").digest()
    if f"sha512-{base64.b64encode(digest).decode()}" != package.integrity:
        raise Unsupported(
            f"{archive} is not {package.name} {package.version}: its SHA-512 is another; remove it"
        )


def _unpack(archive: str, folder: str) -> None:
    """The files of `dist`, made to run at any path, each that is worth it with a packed one beside it."""
    adapted = 0
    for path, data in _members(archive):
        if path.endswith(".map"):
            continue  # half of the package, for those who debug it
        fitted = _adapted(path, data)
        adapted += fitted != data
        target = os.path.join(folder, *path.split("/"))
        os.makedirs(os.path.dirname(target), exist_ok=True)
        with open(target, "wb") as file:
            file.write(fitted)
        if path.rpartition(".")[2] in static.PACKED and not path.startswith("ort/"):
            with open(f"{target}.gz", "wb") as file:
                file.write(gzip.compress(fitted, 6, mtime=0))
    if not adapted or not os.path.isfile(os.path.join(folder, "index.html")):
        raise Unsupported(f"{archive} is built in a way that is not known here")


def _members(archive: str) -> Iterator[tuple[str, bytes]]:
    """(path, bytes) of the regular files below package/dist/."""
    with tarfile.open(archive, "r:gz") as tar:
        for member in tar:
            path = member.name.removeprefix("package/dist/")
            file = tar.extractfile(member) if member.isfile() and path != member.name else None
            if file is not None and not any(part in ("", ".", "..") for part in path.split("/")):
                yield path, file.read()


def _adapted(path: str, data: bytes) -> bytes:
    """A file of the build for the top of a host, made to run at any path."""
    if path.endswith(".css"):
        return data.replace(b"url(/", b"url(" + b"../" * path.count("/"))
    if path.endswith(".js"):
        # In a worker there is no PUBLIC_URL; its script lies beside the others.
        place = b'self.PUBLIC_URL || new URL(".", self.location.href).pathname'
        data = data.replace(b'__webpack_require__.p = "/";', b"__webpack_require__.p = %s;" % place)
        return data.replace(
            b"browserImportFunction('/dicom-microscopy-viewer/",
            b"browserImportFunction(window.PUBLIC_URL + 'dicom-microscopy-viewer/",
        )
    return data
