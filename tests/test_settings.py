"""Where settings come from, which of them wins, and what is said of those that make no sense."""

from __future__ import annotations

import re
import tomllib

import msgspec
import pytest
from command import run

from hilum.errors import BadQuery, StoreMissing
from hilum.settings import FIELDS, Settings, load, parse_listen, template


@pytest.fixture
def written(tmp_path, monkeypatch):
    """Writes hilum.toml into the current folder, which is a new one."""
    monkeypatch.chdir(tmp_path)

    def write(text: str, name: str = "hilum.toml"):
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return write


def test_without_a_file_and_an_environment_everything_is_at_its_default(written):
    assert load(environment={}) == Settings()


def test_by_default_only_this_machine_is_answered_and_nothing_can_be_deleted():
    settings = Settings()

    assert settings.http.listen.startswith("127.0.0.1:")
    assert not settings.storing.allow_delete
    assert not settings.cors.origins


def test_flags_weigh_more_than_the_environment_and_that_more_than_the_file(written):
    written('[http]\nlisten = "127.0.0.1:1"\nworkers = 1\nthreads = 1\n')
    environment = {"HILUM_HTTP_WORKERS": "2", "HILUM_HTTP_THREADS": "2"}

    settings = load(environment=environment, flags={"http.threads": 3})

    assert (settings.http.listen, settings.http.workers, settings.http.threads) == ("127.0.0.1:1", 2, 3)


def test_the_file_is_the_one_named_else_that_of_the_environment_else_the_one_here(written):
    here = written("[http]\nthreads = 1\n")
    named = written("[http]\nthreads = 2\n", "other.toml")

    assert load(environment={}).http.threads == 1
    assert load(environment={"HILUM_CONFIG": str(named)}).http.threads == 2
    assert load(str(here), {"HILUM_CONFIG": str(named)}).http.threads == 1


def test_a_file_that_was_named_and_is_not_there_is_an_error(written):
    with pytest.raises(StoreMissing, match=r"nowhere\.toml"):
        load("nowhere.toml", {})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[http]\nlsten = 'x'\n", r"http\.lsten is no setting; did you mean http\.listen\?"),
        ("[htp]\nlisten = 'x'\n", r"htp"),
        ("listen = 'x'\n", r"listen is no setting"),
        ("[http.listen]\nx = 1\n", r"http\.listen"),
        ("http = 3\n", r"http is no setting"),
        ("[http]\nworkers = 'two'\n", r"http\.workers: Expected `int`"),
        ("[http]\nworkers = 0\n", r"http\.workers"),
        ("[limits]\nheader_seconds = -1\n", r"limits\.header_seconds"),
        ("[storing]\nconflicts = 'keep-all'\n", r"storing\.conflicts"),
        ("[search]\nempty_status = 404\n", r"search\.empty_status"),
        ("[http]\nlisten = 'nowhere'\n", r"http\.listen"),
        ("[http]\nbase_url = 'pacs.example.org'\n", r"http\.base_url"),
        ("[http]\ntrusted_proxies = ['proxy']\n", r"http\.trusted_proxies"),
        ("[cors]\norigins = ['viewer.example.org']\n", r"cors\.origins"),
        ("[cors]\norigins = 'https://a'\n", r"cors\.origins"),
        ("[http\n", r"hilum\.toml"),
    ],
)
def test_what_is_wrong_in_the_file_is_named_with_the_file(written, text, words):
    written(text)

    with pytest.raises(BadQuery, match=words) as raised:
        load(environment={})
    assert "hilum.toml" in str(raised.value)


@pytest.mark.parametrize(
    ("variable", "text", "words"),
    [
        ("HILUM_HTTP_LISTN", "x", "HILUM_HTTP_LISTN is no setting; did you mean HILUM_HTTP_LISTEN"),
        ("HILUM_NONSENSE", "1", "HILUM_NONSENSE is no setting"),
        ("HILUM_HTTP_WORKERS", "two", "HILUM_HTTP_WORKERS: 'two' is no number"),
        ("HILUM_STORING_ALLOW_DELETE", "perhaps", "HILUM_STORING_ALLOW_DELETE: 'perhaps'"),
        ("HILUM_HTTP_WORKERS", "0", "environment: http.workers"),
    ],
)
def test_what_is_wrong_in_the_environment_is_named(written, variable, text, words):
    with pytest.raises(BadQuery, match=words):
        load(environment={variable: text})


def test_an_unknown_flag_is_named(written):
    with pytest.raises(BadQuery, match=r"http\.lissten is no setting; did you mean http\.listen"):
        load(environment={}, flags={"http.lissten": "x"})


def test_the_environment_says_every_kind_of_value(written):
    settings = load(
        environment={
            "HILUM_STORE": "/data/store",
            "HILUM_STORING_ALLOW_DELETE": "yes",
            "HILUM_LIMITS_QUERY_SECONDS": "2.5",
            "HILUM_CORS_ORIGINS": "https://a.example, https://b.example",
            "HILUM_HTTP_TRUSTED_PROXIES": "",
            "PATH": "/bin",
        }
    )

    assert settings.store == "/data/store"
    assert settings.storing.allow_delete
    assert settings.limits.query_seconds == 2.5
    assert settings.cors.origins == ("https://a.example", "https://b.example")
    assert settings.http.trusted_proxies == ()


def test_paths_in_a_file_are_relative_to_its_folder_and_others_to_where_we_are(written, tmp_path):
    (tmp_path / "etc").mkdir()
    path = written('store = "data"\n[log]\nfile = "/var/log/hilum"\n', "etc/hilum.toml")

    settings = load(str(path), {"HILUM_AUTH_USERS_FILE": "users"})

    assert settings.store == str(tmp_path / "etc" / "data")
    assert settings.viewer.cache == ""
    assert settings.log.file == "/var/log/hilum"
    assert settings.auth.users_file == "users"


def test_the_template_names_every_setting_with_a_comment_and_its_default(written):
    text = template()
    active = re.sub(r"(?m)^#(\w+ = )", r"\1", text)

    assert msgspec.convert(tomllib.loads(active), Settings) == Settings()
    assert tomllib.loads(text) == {section: {} for section in tomllib.loads(active) if section != "store"}
    assert re.search(r"(?m)^# \[peers\.NAME\]\n# title = ", text)
    for name, field in FIELDS.items():
        assert field.description, name
        if name == "peers":  # tables with names of the user's choice: an example stands there
            continue
        key = name.rpartition(".")[2]
        assert re.search(rf"(?m)^# .+\n#{key} = ", text), name
    written(text)
    commented = load(environment={})
    written(active)
    assert load(environment={}) == commented


@pytest.mark.parametrize(
    ("text", "expected"),
    [("127.0.0.1:8080", ("127.0.0.1", 8080)), (":0", ("127.0.0.1", 0)), ("[::1]:80", ("::1", 80)),
     ("0.0.0.0:1", ("0.0.0.0", 1)), ("localhost:65535", ("localhost", 65535))],
)  # fmt: skip
def test_an_address_has_a_port(text, expected):
    assert parse_listen(text) == expected


@pytest.mark.parametrize("text", ["", "8080", "localhost", "::1:80", "a:b", "a:-1", "a:65536", "a:1²"])
def test_an_address_without_a_good_port_is_refused(text):
    with pytest.raises(BadQuery):
        parse_listen(text)


def test_init_writes_the_template_once(written, tmp_path):
    assert run("init").code == 0
    assert (tmp_path / "hilum.toml").read_text() == template()

    (tmp_path / "hilum.toml").write_text("# mine\n")
    again = run("init")

    assert again.code == 1
    assert "there already" in again.err
    assert (tmp_path / "hilum.toml").read_text() == "# mine\n"


def test_init_with_a_user_asks_for_names_from_then_on(written, tmp_path, monkeypatch):
    import io

    monkeypatch.setattr("sys.stdin", io.StringIO("secret\n"))
    assert run("init", "--user", "alice", "--password-stdin").code == 0

    settings = load(environment={})
    assert settings.auth.method == "basic"
    users = tmp_path / "hilum.users"
    assert settings.auth.users_file == str(users)
    assert "alice:$argon2id$" in users.read_text()
    assert "secret" not in users.read_text()
    assert users.stat().st_mode & 0o077 == 0


def test_init_says_when_a_file_that_is_there_asks_nobody_for_a_name(written, tmp_path, monkeypatch):
    import io

    written("# mine\n")
    monkeypatch.setattr("sys.stdin", io.StringIO("secret\n"))
    ran = run("init", "--user", "alice", "--password-stdin")

    assert ran.code == 0
    assert "auth.method" in ran.err
    assert (tmp_path / "hilum.toml").read_text() == "# mine\n"
