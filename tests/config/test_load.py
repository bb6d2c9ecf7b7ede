from pathlib import Path

import pytest

from ssl_core.config.load import find_project, load_project, parse_overrides
from ssl_core.errors import UserError

GOOD = "name: digits\ndata:\n  source: sample://digits\n"


def write(folder: Path, text: str, name: str = "p.yaml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def problems(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        load_project(path)
    return str(caught.value)


def test_a_minimal_file_gets_all_defaults(tmp_path):
    project = load_project(write(tmp_path, GOOD))
    assert project.name == "digits"
    assert project.objective.name == "simclr"
    assert project.evaluate.label_budgets == "auto"
    assert project.evaluate.budgets(10) == (10, 20, 50, 100)


def test_an_unknown_key_names_file_line_key_and_the_near_miss(tmp_path):
    path = write(tmp_path, GOOD + "objective:\n  name: simclr\n  temprature: 0.1\n")
    assert f"{path}:6: objective.temprature: unknown key, did you mean `temperature`?" in problems(path)


def test_an_unknown_key_inside_a_list_is_located(tmp_path):
    path = write(tmp_path, GOOD + "validation:\n  expectations:\n    - type: expect_x\n      kwrgs: {}\n")
    assert f"{path}:7: validation.expectations[0].kwrgs: unknown key, did you mean `kwargs`?" in problems(path)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (GOOD + "pretrain:\n  epochs: many\n", ":5: pretrain.epochs: should be a valid integer"),
        (GOOD + "pretrain:\n  when: frst\n", "did you mean `first`?"),
        (GOOD + "encoder:\n  widths: 32\n", "encoder.widths: should be a valid tuple"),
        (GOOD.replace("digits\n", "Digits\n", 1), ":1: name: should match pattern"),
        ("data: {source: x}\n", "name: is required"),
        ("name: x\n", "data: is required"),
        (GOOD + "data:\n  source: y\n", "the key stands twice"),
        (GOOD + "pretrain: {learning_rate: .nan}\n", "pretrain.learning_rate"),
        (GOOD + "  split: {train: 0.5, val: 0.1, test: 0.1, vault: 0.1}\n", "must be 1, not 0.8"),
        ("name: x\ndata: {source: 'http://host/x'}\n", "http:// is no source"),
        ("name: x\ndata: {source: 's3:///prefix'}\n", "names no bucket"),
        ("name: x\ndata: {source: 's3://-x/prefix'}\n", "names no bucket"),
        ("name: x\ndata: {source: 's3://b?x=1/prefix'}\n", "names no bucket"),
        ("name: x\ndata: {source: d, labels: 'gs://b/l.csv'}\n", "gs:// holds no labels"),
        ("name: x\ndata: {source: d, labels: 's3://bucket/'}\n", "names a bucket and no object"),
        ("", "empty or not a mapping"),
        ("- a\n- b\n", "empty or not a mapping"),
        ("name: [unclosed\n", "not valid YAML"),
        ("name: !!python/object/apply:os.system ['true']\n", "not valid YAML"),
    ],
)
def test_bad_files_say_what_is_wrong(tmp_path, text, expected):
    shown = problems(write(tmp_path, text))
    assert expected in shown
    assert "secretpw" not in shown


def test_all_problems_are_listed_at_once(tmp_path):
    text = problems(write(tmp_path, "name: Bad Name\ndata:\n  source: 3\n  colour: red\n"))
    assert {"name", "data.source", "data.colour"} <= {part.split(": ")[1] for part in text.splitlines() if ": " in part}


def test_aliases_that_multiply_are_refused(tmp_path):
    levels = "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 8))
    assert "too many nodes" in problems(write(tmp_path, "a0: &a0 [x]\n" + levels))


def test_binary_and_huge_files_are_refused(tmp_path):
    (tmp_path / "b.yaml").write_bytes(b"\xff\xfe\x00")
    assert "not UTF-8" in problems(tmp_path / "b.yaml")
    assert "larger than 1 MB" in problems(write(tmp_path, "#" * 1_000_001, "h.yaml"))


def test_a_relative_source_is_taken_from_the_files_folder(tmp_path):
    folder = tmp_path / "projects"
    folder.mkdir()
    project = load_project(write(folder, "name: x\ndata: {source: ../images, labels: ../l.csv}\n"))
    assert project.data.source == str(tmp_path / "images")
    assert project.data.labels == str(tmp_path / "l.csv")


def test_overrides_are_checked_like_the_file(tmp_path):
    path = write(tmp_path, GOOD)
    assert load_project(path, parse_overrides(["pretrain.epochs=5"])).pretrain.epochs == 5
    with pytest.raises(UserError, match=r"pretrain.epoch: unknown key, did you mean `epochs`"):
        load_project(path, parse_overrides(["pretrain.epoch=5"]))
    with pytest.raises(UserError, match="not KEY=VALUE"):
        parse_overrides(["pretrain.epochs"])


def test_an_error_in_an_override_points_at_the_option_not_at_the_file(tmp_path):
    path = write(tmp_path, GOOD)
    with pytest.raises(UserError) as caught:
        load_project(path, parse_overrides(["pretrain.epochs=many"]))
    assert str(caught.value).startswith("--set: pretrain.epochs:")
    assert str(path) not in str(caught.value)
    broken = write(tmp_path, GOOD + "colour: red\n")
    with pytest.raises(UserError) as caught:
        load_project(broken, parse_overrides(["pretrain.epochs=many"]))
    assert "--set: pretrain.epochs:" in str(caught.value)
    assert f"{broken}:" in str(caught.value)


def test_a_section_that_only_an_override_names_is_the_overrides_fault(tmp_path):
    path = write(tmp_path, GOOD)
    with pytest.raises(UserError) as caught:
        load_project(path, parse_overrides(["pretrian.epochs=5"]))
    assert str(caught.value).startswith("--set: pretrian: unknown key, did you mean `pretrain`?")
    assert str(path) not in str(caught.value)
    broken = write(tmp_path, GOOD + "pretrian: {seed: 1}\n")
    with pytest.raises(UserError, match=r":\d+: pretrian: unknown key") as caught:
        load_project(broken, parse_overrides(["pretrian.epochs=5"]))
    assert str(broken) in str(caught.value), "it stands in the file as well"


def test_a_project_is_found_by_name_or_path(tmp_path):
    path = write(tmp_path, GOOD, "digits.yaml")
    assert find_project("digits", tmp_path) == path
    assert find_project(str(path), tmp_path / "elsewhere") == path
    with pytest.raises(UserError, match="did you mean `digits`"):
        find_project("digit", tmp_path)
    with pytest.raises(UserError, match="no such project file"):
        find_project("missing.yaml", tmp_path)


def test_the_home_of_nobody_is_a_folder_that_is_not_there(tmp_path):
    path = write(tmp_path, "name: digits\ndata:\n  source: ~no-such-user/images\n")
    assert load_project(path).data.source == str(tmp_path / "~no-such-user/images")
    path = write(tmp_path, "name: digits\ndata:\n  source: ~/images\n")
    assert load_project(path).data.source == str(Path.home().resolve() / "images")
