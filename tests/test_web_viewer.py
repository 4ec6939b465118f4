"""A viewer beside the data: a folder that was built by others, and OHIF out of its package. Goes to no
network: the package is a small one that is made here, and npm a script."""

from __future__ import annotations

import base64
import gzip
import hashlib
import io
import os
import re
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import quote

import orjson
import pytest
from starlette.testclient import TestClient
from webclient import serving

from hilum.errors import BadQuery, Unsupported
from hilum.settings import Viewer
from hilum.web import viewer
from hilum.web.viewer import Package

DIGEST = "0123456789abcdef0123"
FILES = {
    "index.html": b"<title>The viewer</title>",
    f"app.{DIGEST}.js": b"run()" * 500,
    f"app.{DIGEST}.js.gz": gzip.compress(b"run()" * 500, mtime=0),
    "plain.js": b"plain()",
    "codec.wasm": b"\0asm",
    "deep/down/style.css": b"body {}",
    ".git/config": b"PRIVATE",
    "deep/.env": b"PRIVATE",
}


def write(folder: Path, files: Mapping[str, bytes]) -> Path:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "secret.js").write_bytes(b"PRIVATE")
    return write(tmp_path / "build", FILES)


@pytest.fixture
def client(folder: Path, tmp_path: Path) -> Iterator[TestClient]:
    """A server with that folder as its viewer."""
    with serving(tmp_path, viewer={"name": str(folder)}) as (client, _):
        yield client


# --- Any static viewer ----------------------------------------------------------------


def test_a_file_of_the_folder_is_served_with_its_type(client):
    for name, kind in {
        "plain.js": "text/javascript",
        "codec.wasm": "application/wasm",
        "deep/down/style.css": "text/css",
        "index.html": "text/html; charset=utf-8",
    }.items():
        found = client.get(f"/viewer/{name}")
        assert found.status_code == 200
        assert found.content == FILES[name]
        assert found.headers["content-type"] == kind


@pytest.mark.parametrize("path", ["/viewer/", "/viewer/study/1.2.840.3", "/viewer/a/b?StudyInstanceUIDs=1.2"])
def test_a_place_inside_of_the_viewer_is_answered_with_its_page(client, path):
    found = client.get(path)

    assert found.status_code == 200
    assert found.content == FILES["index.html"]


def test_the_top_without_its_slash_leads_to_the_one_with_it_and_keeps_the_query(client):
    found = client.get("/viewer?StudyInstanceUIDs=1.2", follow_redirects=False)

    assert found.status_code == 308
    assert found.headers["location"] == "viewer/?StudyInstanceUIDs=1.2"


def test_a_file_that_is_missing_is_a_404_and_not_the_page(client):
    assert client.get("/viewer/missing.js").status_code == 404
    assert client.get("/viewer/deep/missing.wasm").status_code == 404


@pytest.mark.parametrize(
    "path",
    [
        "../secret.js",
        "deep/../../secret.js",
        "./plain.js",
        "deep//down/style.css",
        "/etc/hostname.txt",
        "..\\secret.js",
        "plain.js\0.css",
        ".git/config",
        "deep/.env",
        "link.js",
        "linked/secret.js",
        "a" * 5000 + ".js",
        "\udcff.js",
        "deep/down",
    ],
)
def test_no_path_leads_out_of_the_folder_or_to_what_is_hidden(folder, tmp_path, path):
    (folder / "link.js").symlink_to(tmp_path / "secret.js")
    (folder / "linked").symlink_to(tmp_path)
    with serving(tmp_path, viewer={"name": str(folder)}) as (client, _):
        for encoded in {
            quote(path, errors="surrogateescape"),
            quote(path, safe="", errors="surrogateescape"),
        }:
            for prefix in ("/viewer/", "/"):
                found = client.get(prefix + encoded, follow_redirects=False)
                # A client may mend a path before it sends it.
                mended = found.content in (FILES["index.html"], FILES["plain.js"])
                assert found.status_code == 404 or (found.status_code == 200 and mended)
                assert b"PRIVATE" not in found.content


def test_a_link_inside_of_the_folder_is_followed(folder, tmp_path):
    (folder / "link.js").symlink_to(folder / "plain.js")
    with serving(tmp_path, viewer={"name": str(folder)}) as (client, _):
        assert client.get("/viewer/link.js").content == b"plain()"


def test_a_packed_file_beside_it_is_sent_to_those_who_take_it_and_to_no_others(client):
    url = f"/viewer/app.{DIGEST}.js"
    packed = client.get(url, headers={"accept-encoding": "gzip"})
    plain = client.get(url, headers={"accept-encoding": "br, gzip; q=0"})

    assert packed.headers["content-encoding"] == "gzip"
    assert int(packed.headers["content-length"]) == len(FILES[f"app.{DIGEST}.js.gz"])
    assert "content-encoding" not in plain.headers
    assert packed.content == plain.content == FILES[f"app.{DIGEST}.js"]
    assert packed.headers["etag"] != plain.headers["etag"]
    assert "accept-encoding" in plain.headers["vary"].lower()


def test_what_has_a_digest_in_its_name_is_kept_for_ever_and_all_else_is_asked_for_again(client):
    assert "immutable" in client.get(f"/viewer/app.{DIGEST}.js").headers["cache-control"]
    assert client.get("/viewer/plain.js").headers["cache-control"] == "no-cache"
    assert client.get("/viewer/").headers["cache-control"] == "no-cache"


def test_a_file_that_the_client_has_is_a_304_until_it_changes(client, folder):
    url = "/viewer/plain.js"
    etag = client.get(url).headers["etag"]

    held = client.get(url, headers={"if-none-match": etag})
    assert (held.status_code, held.content) == (304, b"")
    assert held.headers["etag"] == etag

    (folder / "plain.js").write_bytes(b"another()")
    assert client.get(url, headers={"if-none-match": etag}).content == b"another()"


def test_head_tells_the_length_and_sends_no_body(client):
    found = client.head("/viewer/plain.js")

    assert (found.status_code, found.content) == (200, b"")
    assert found.headers["content-length"] == "7"


def test_pages_and_scripts_are_isolated_so_that_they_have_shared_memory(client):
    for path in ("/viewer/", "/viewer/plain.js"):
        headers = client.get(path).headers
        assert headers["cross-origin-opener-policy"] == "same-origin"
        assert headers["cross-origin-embedder-policy"] == "require-corp"
    assert client.get("/viewer/codec.wasm").headers["cross-origin-resource-policy"] == "same-origin"


def test_a_build_for_the_top_of_a_host_finds_its_files_there_and_ours_go_first(client, folder):
    write(folder, {"healthz": b"theirs", "pages/page.js": b"theirs"})

    assert client.get("/plain.js").content == b"plain()"
    assert client.get("/deep/down/style.css").content == b"body {}"
    assert client.get("/healthz").json() == {"status": "ok"}
    assert client.get("/pages/page.js").content != b"theirs"
    assert client.get("/nothing").status_code == 404


def test_without_a_viewer_there_is_nothing_at_its_paths(tmp_path):
    with serving(tmp_path) as (client, _):
        assert client.get("/viewer/").status_code == 404
        assert client.get("/ohif/").status_code == 404


@pytest.mark.parametrize("name", ["nowhere", "empty"])
def test_a_folder_that_is_no_viewer_is_refused_before_the_server_starts(tmp_path, name):
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadQuery, match=r"index\.html"):
        viewer.prepare(Viewer(name=str(tmp_path / name)))


# --- OHIF ------------------------------------------------------------------------------

INDEX = (
    '<meta content="/assets/x.png"><script>window.PUBLIC_URL = \'/\';</script><link href="/app.bundle.css">'
    '<script rel="preload" src="/app-config.js"></script><script src="/app.bundle.js"></script>'
)
DIST = {
    "index.html": INDEX.encode(),
    "app.bundle.js": b'x;\n__webpack_require__.p = "/";\n'
    b"browserImportFunction('/dicom-microscopy-viewer/v.min.js');",
    "app.bundle.js.map": b"{}",
    "app.bundle.css": b"@font-face{src:url(/f.woff2)}",
    "deep/x.css": b"a{background:url(/i.png)}",
    "ort/big.wasm": b"\0asm",
    "app-config.js": b"window.config = {theirs: true}",
}


def archive_of(files: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
        link = tarfile.TarInfo("package/dist/link.js")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/hostname"
        tar.addfile(link)
    return buffer.getvalue()


@pytest.fixture
def package(monkeypatch) -> tuple[Package, bytes]:
    """A package that stands for OHIF's, and its archive."""
    hostile = {
        "package/dist/../../../escaped.js": b"1",
        "package/dist//abs.js": b"2",
        "package/other.js": b"3",
    }
    data = archive_of({f"package/dist/{name}": content for name, content in DIST.items()} | hostile)
    integrity = "sha512-" + base64.b64encode(hashlib.sha512(data).digest()).decode()
    package = Package("@ohif/app", "9.9.9", integrity)
    monkeypatch.setattr(viewer, "OHIF", package)
    return package, data


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def npm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> Path:
    """Make `npm` be this script, and nothing else be found; gives the file that it appends its words to."""
    folder = tmp_path / "bin"
    folder.mkdir()
    said = tmp_path / "said"
    (folder / "npm").write_text(f'#!/bin/sh\necho "$@" >> {said}\n{script}\n')
    (folder / "npm").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    return said


@pytest.fixture
def fetched(package, cache, tmp_path, monkeypatch) -> Path:
    """A cache that the package was fetched into; gives the words that npm was called with."""
    archive = tmp_path / "served.tgz"
    archive.write_bytes(package[1])
    script = f'for last; do :; done; cp {archive} "$last/ohif-app-9.9.9.tgz"'
    said = npm(tmp_path, monkeypatch, script)
    viewer.prepare(Viewer(name="ohif", cache=str(cache)))
    return said


@pytest.fixture
def ohif(fetched, cache, tmp_path) -> Iterator[TestClient]:
    with serving(tmp_path, viewer={"name": "ohif", "cache": str(cache)}) as (client, _):
        yield client


def test_the_package_is_fetched_once_by_npm_and_by_its_version_without_running_its_scripts(fetched, cache):
    viewer.prepare(Viewer(name="ohif", cache=str(cache)))

    (words,) = fetched.read_text().splitlines()
    assert words.startswith("pack @ohif/app@9.9.9 ")
    assert "--ignore-scripts" in words
    assert [path.name for path in cache.iterdir()] == ["ohif-9.9.9-1"]


def test_nothing_is_written_outside_of_the_cache_and_no_link_is_made(fetched, cache, tmp_path):
    found = {path.relative_to(cache).parts[1:] for path in cache.rglob("*") if path.is_file()}

    assert not any(path.is_symlink() for path in cache.rglob("*"))
    assert {"/".join(parts) for parts in found if not parts[-1].endswith(".gz")} == {
        name for name in DIST if not name.endswith(".map")
    }
    assert not list(tmp_path.rglob("escaped.js"))


def test_an_archive_in_the_cache_is_taken_where_there_is_no_npm(package, cache, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    cache.mkdir()
    (cache / "ohif-app-9.9.9.tgz").write_bytes(package[1])

    viewer.prepare(Viewer(name="ohif", cache=str(cache)))

    assert (cache / "ohif-9.9.9-1" / "index.html").is_file()


def test_where_npm_is_missing_the_words_say_what_to_do(package, cache, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")

    with pytest.raises(Unsupported) as caught:
        viewer.prepare(Viewer(name="ohif", cache=str(cache)))

    for needed in ("apt-get install npm", "npm pack @ohif/app@9.9.9", str(cache), "--viewer DIR"):
        assert needed in str(caught.value)


def test_an_archive_with_another_digest_is_refused_and_nothing_is_kept(package, cache, tmp_path, monkeypatch):
    npm(tmp_path, monkeypatch, 'for last; do :; done; echo other > "$last/ohif-app-9.9.9.tgz"')

    with pytest.raises(Unsupported, match="SHA-512"):
        viewer.prepare(Viewer(name="ohif", cache=str(cache)))

    assert list(cache.iterdir()) == []


def test_words_of_an_npm_that_fails_are_passed_on(package, cache, tmp_path, monkeypatch):
    npm(tmp_path, monkeypatch, "echo 'no route to the registry' >&2; exit 7")

    with pytest.raises(Unsupported, match="no route to the registry"):
        viewer.prepare(Viewer(name="ohif", cache=str(cache)))

    assert list(cache.iterdir()) == []


def test_the_cache_is_the_users_where_none_is_named(package, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    (tmp_path / "xdg" / "hilum").mkdir(parents=True)
    (tmp_path / "xdg" / "hilum" / "ohif-app-9.9.9.tgz").write_bytes(package[1])

    viewer.prepare(Viewer(name="ohif"))

    assert (tmp_path / "xdg" / "hilum" / "ohif-9.9.9-1").is_dir()


def test_its_files_refer_to_each_other_and_not_to_the_top_of_the_host(ohif):
    script = ohif.get("/ohif/app.bundle.js").text
    assert '= "/"' not in script
    assert "self.PUBLIC_URL" in script
    assert "'/dicom-microscopy-viewer" not in script
    assert ohif.get("/ohif/app.bundle.css").text == "@font-face{src:url(f.woff2)}"
    assert ohif.get("/ohif/deep/x.css").text == "a{background:url(../i.png)}"


@pytest.mark.parametrize(
    "path", ["/ohif/", "/ohif/viewer?StudyInstanceUIDs=1.2", "/ohif/microscopy", "/ohif/index.html"]
)
def test_its_page_is_answered_at_each_place_in_it_and_refers_to_our_path(ohif, path):
    page = ohif.get(path).text

    assert 'window.PUBLIC_URL = "/ohif/";' in page
    assert 'src="/ohif/app-config.js"' in page
    assert not re.search(r"""(?:href|src|content)=["']/(?!ohif/)""", page)


def test_behind_a_proxy_with_a_prefix_it_refers_to_that(fetched, cache, tmp_path):
    settings = {"viewer": {"name": "ohif", "cache": str(cache)}, "http": {"trusted_proxies": ["0.0.0.0/0"]}}
    with serving(tmp_path, **settings) as (client, _):
        client = TestClient(client.app, base_url="http://localhost", client=("10.0.0.1", 1))
        headers = {"x-forwarded-prefix": "/pacs"}
        page = client.get("/ohif/viewer", headers=headers).text
        config = configuration_of(client.get("/ohif/app-config.js", headers=headers).text)

    assert 'PUBLIC_URL = "/pacs/ohif/"' in page
    assert 'src="/pacs/ohif/app.bundle.js"' in page
    assert config["routerBasename"] == "/pacs/ohif/"
    assert config["dataSources"][0]["configuration"]["wadoRoot"] == "/pacs/dicom-web"


def configuration_of(script: str) -> dict:
    return orjson.loads(re.search(r"window\.config = (.*);", script)[1])


def test_its_configuration_is_ours_and_not_that_of_the_package(ohif):
    answer = ohif.get("/ohif/app-config.js")
    config = configuration_of(answer.text)
    (source,) = config["dataSources"]

    assert answer.headers["content-type"].startswith("text/javascript")
    assert config["routerBasename"] == "/ohif/"
    assert config["defaultDataSourceName"] == source["sourceName"]
    wanted = {
        "qidoRoot": "/dicom-web",
        "wadoRoot": "/dicom-web",
        "omitQuotationForMultipartRequest": True,
        "singlepart": "bulkdata,video,pdf",
        "bulkDataURI": {"enabled": True, "relativeResolution": "studies"},
        "imageRendering": "wadors",
    }
    assert {key: source["configuration"][key] for key in wanted} == wanted


def test_the_lines_without_which_it_stays_black_stand_ahead_of_its_configuration(ohif):
    script = ohif.get("/ohif/app-config.js").text

    first, second = script.splitlines()
    assert first == 'window.__filename = ""; window.__dirname = "/";'
    assert second.startswith("window.config = ")


def test_it_can_talk_to_nobody_else(ohif):
    for path in ("/ohif/", "/ohif/app.bundle.js"):
        policy = ohif.get(path).headers["content-security-policy"]
        assert "default-src 'self'" in policy
        assert "http" not in policy
        assert "*" not in policy


def test_no_path_leads_out_of_its_folder(ohif, cache):
    (cache / "secret.js").write_text("PRIVATE")
    for path in ("/ohif/..%2fsecret.js", "/ohif/%2e%2e/secret.js", "/ohif/deep/..%2f..%2fsecret.js"):
        assert "PRIVATE" not in ohif.get(path).text


def test_the_link_that_our_page_has_leads_to_it(ohif):
    link = viewer.link_of(Viewer(name="ohif"))

    assert link is not None
    assert ohif.get("/" + link.path).status_code == 200
    assert viewer.link_of(Viewer()) is None


def test_the_digest_that_is_written_down_is_one():
    assert re.fullmatch(r"sha512-[A-Za-z0-9+/]{86}==", viewer.OHIF.integrity)
    assert viewer.OHIF.version.startswith("3.12.")
    assert os.sep not in viewer.OHIF.archive
