"""Where settings come from, who wins, and what is refused."""

import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec
import pytest

from agent.web.auth import Secret
from agent.web.errors import SettingsError
from agent.web.settings import Loaded, load, mask, show


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """Settings of every type that the daemons use."""

    listen: str = "127.0.0.1:1"
    state_dir: Path = Path("/var/lib/sample")
    dirs: Annotated[list[Path], msgspec.Meta(min_length=1)] = msgspec.field(default_factory=lambda: [Path("/a")])
    depth: Annotated[int, msgspec.Meta(ge=1)] = 100
    strict: bool = False
    key_file: Path | None = None
    password: Secret | None = None
    database: str = "sqlite:////x.db"


Load = Callable[..., Loaded[Sample]]


@pytest.fixture
def load_sample(tmp_path: Path) -> Load:
    def call(environ: Mapping[str, str] | None = None, **arguments: Any) -> Loaded[Sample]:
        return load(
            Sample, default_file=tmp_path / "sample.toml", env_prefix="SAMPLE_", environ=environ or {}, **arguments
        )

    return call


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    return path


def test_without_a_file_the_defaults_are_in_force(load_sample: Load) -> None:
    loaded = load_sample()
    assert loaded.settings == Sample()
    assert set(loaded.sources.values()) == {"default"}


def test_file_drop_ins_environment_and_flags_win_in_this_order(load_sample: Load, tmp_path: Path) -> None:
    write(tmp_path / "sample.toml", "depth = 1\nlisten = 'a:1'\nstrict = true\ndatabase = 'f'\n")
    write(tmp_path / "sample.d" / "20.toml", "listen = 'c:1'\ndepth = 2\ndatabase = 'd'\n")
    write(tmp_path / "sample.d" / "10.toml", "listen = 'b:1'\n")
    write(tmp_path / "sample.d" / "30.not-toml", "nonsense")
    loaded = load_sample(
        {"SAMPLE_DEPTH": "3", "SAMPLE_DATABASE": "e", "OTHER": "x"}, flags={"depth": 4, "strict": None}
    )
    assert loaded.settings == Sample(listen="c:1", depth=4, strict=True, database="e")
    assert loaded.sources["listen"] == str(tmp_path / "sample.d" / "20.toml")
    assert (loaded.sources["depth"], loaded.sources["database"]) == ("flag", "environment")


def test_a_named_file_brings_its_own_drop_ins_only(load_sample: Load, tmp_path: Path) -> None:
    write(tmp_path / "sample.toml", "depth = 9")
    write(tmp_path / "sample.d" / "a.toml", "depth = 8")
    other = write(tmp_path / "etc" / "other.toml", "listen = 'x:1'")
    write(tmp_path / "etc" / "other.d" / "a.toml", "strict = true")
    expected = Sample(listen="x:1", strict=True)
    assert load_sample(config=other).settings == expected
    assert load_sample({"SAMPLE_CONFIG": str(other)}).settings == expected


def test_a_list_in_the_environment_is_separated_by_commas_or_a_toml_array(load_sample: Load) -> None:
    assert load_sample({"SAMPLE_DIRS": "/b, /c"}).settings.dirs == [Path("/b"), Path("/c")]
    assert load_sample({"SAMPLE_DIRS": '["/b,c"]'}).settings.dirs == [Path("/b,c")]


def test_a_relative_path_is_made_absolute(load_sample: Load) -> None:
    assert load_sample({"SAMPLE_STATE_DIR": "here"}).settings.state_dir == Path.cwd() / "here"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("stat_dir = '/x'", ["sample.toml: stat_dir", "did you mean state_dir?"]),
        ("zzz = 1", ["sample.toml: zzz", "known are: database, depth"]),
        ("depth = 'deep'", ["sample.toml: depth", "Expected `int`, got `str`"]),
        ("depth = 0", ["sample.toml: depth", ">= 1"]),
        ("dirs = '/a'", ["sample.toml: dirs", "Expected `array`"]),
        ("dirs = [1]", ["sample.toml: dirs", "$[0]"]),
        ("state_dir = ''", ["sample.toml: state_dir", "Expected a path"]),
        ("strict = 1", ["sample.toml: strict", "Expected `bool`"]),
        ("[table]\na = 1", ["sample.toml: table", "unknown key"]),
        ("depth = ", ["sample.toml", "not TOML"]),
    ],
)
def test_what_is_wrong_in_a_file_is_named_with_file_and_key(
    load_sample: Load, tmp_path: Path, text: str, words: list[str]
) -> None:
    write(tmp_path / "sample.toml", text)
    with pytest.raises(SettingsError) as caught:
        load_sample()
    assert all(word in str(caught.value) for word in words), str(caught.value)


@pytest.mark.parametrize(
    ("environ", "word"),
    [
        ({"SAMPLE_DEPTHS": "1"}, "SAMPLE_DEPTHS: unknown key; did you mean depth?"),
        ({"SAMPLE_DEPTH": "x"}, "SAMPLE_DEPTH: Expected `int`"),
        ({"SAMPLE_DIRS": "[/b"}, "SAMPLE_DIRS: not a TOML array"),
        ({"SAMPLE_CONFIG": "/nowhere.toml"}, "/nowhere.toml: cannot be read"),
    ],
)
def test_what_is_wrong_in_the_environment_is_named(load_sample: Load, environ: dict[str, str], word: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load_sample(environ)
    assert word in str(caught.value)


def test_an_unknown_flag_and_a_missing_named_file_are_fatal(load_sample: Load, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="--dept: unknown key"):
        load_sample(flags={"dept": 1})
    with pytest.raises(SettingsError, match="cannot be read"):
        load_sample(config=tmp_path / "none.toml")


@pytest.mark.case("X5")
def test_show_is_toml_with_sources_and_without_secrets(load_sample: Load) -> None:
    environ = {
        "SAMPLE_PASSWORD": "hunter2",
        "SAMPLE_DATABASE": "postgresql://coldframe:hunter2@db/x?password=hunter2&a=b",
        "SAMPLE_LISTEN": 'odd "name"\x7f',
    }
    loaded = load_sample(environ)
    text = show(loaded)
    assert "hunter2" not in text + repr(loaded)[: repr(loaded).index("database")]
    values = tomllib.loads(text)
    assert values["database"] == "postgresql://coldframe:***@db/x?password=***&a=b"
    assert values["listen"] == environ["SAMPLE_LISTEN"]
    assert values["dirs"] == ["/a"]
    assert "depth = 100  # default" in text
    assert "# key_file is not set  # default" in text


@pytest.mark.case("X5")
@pytest.mark.parametrize("url", ["qemu:///system", "sqlite:////var/lib/x.db", "http://host:80/x", "/a/b"])
def test_mask_leaves_what_has_no_password(url: str) -> None:
    assert mask(url) == url
