"""What an unfinished run left behind is trusted only where it is as it was left."""

import hashlib
import json
import os
import shutil
from pathlib import Path

import msgspec
import pytest
from tests.core.checkpoints.files import contents, sharded, sound

import rankfold as rf
from rankfold.checkpoints import compress as compression
from rankfold.checkpoints import planning

POLICY = rf.Ratio(0.4)


class StoppedError(Exception):
    pass


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sharded(tmp_path_factory.mktemp("source") / "model", files=3)


@pytest.fixture(scope="module")
def expected(source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    out = tmp_path_factory.mktemp("expected") / "out"
    rf.compress_checkpoint(source, out, POLICY)
    return contents(out)


@pytest.fixture
def work(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The work folder of a run of which two of three files are finished."""
    stop(source, tmp_path / "out", monkeypatch)
    found = tmp_path / ".out.rankfold"
    assert len(list(found.glob("done/*.json"))) == 2
    return found


def stop(source: Path, out: Path, monkeypatch: pytest.MonkeyPatch, policy=POLICY) -> None:
    write, count = compression.write, 0

    def until_the_third(*arguments):
        nonlocal count
        count += 1
        if count == 3:
            raise StoppedError
        return write(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(compression, "write", until_the_third)
        with pytest.raises(StoppedError):
            rf.compress_checkpoint(source, out, policy)


def finished(source: Path, work: Path) -> dict[str, str]:
    """What the next run makes of it."""
    out = work.parent / "out"
    rf.compress_checkpoint(source, out, POLICY)
    assert not work.exists()
    return contents(out)


def test_what_is_as_it_was_left_is_not_done_again(
    source: Path, work: Path, expected: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    written = []
    write = compression.write
    monkeypatch.setattr(
        compression, "write", lambda w, part: written.append(part.name) or write(w, part)
    )
    monkeypatch.setattr(planning, "planned", lambda *a, **k: pytest.fail("planned again"))
    old = {file.name: file.stat().st_ino for file in work.glob("new-*/*.safetensors")}
    assert finished(source, work) == expected
    assert written == ["weights-00003-of-00003.safetensors"]
    for name, inode in old.items():
        assert (work.parent / "out" / name).stat().st_ino == inode


CONTENTS = {
    "nothing": b"",
    "half": None,
    "binary": bytes(range(256)),
    "deep": b"[" * 100_000,
    "an object": b"{}",
    "null": b"null",
    "a seal of something else": b'{"seal": "", "value": {}}',
    "a deep value": b'{"seal": "", "value": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
}


@pytest.mark.parametrize("text", CONTENTS.values(), ids=CONTENTS)
@pytest.mark.parametrize("name", ["plan.json", "job.json", "done/*-00001-*.json", "*"])
def test_a_damaged_note_is_made_anew(
    source: Path, work: Path, expected: dict[str, str], name: str, text: bytes | None
) -> None:
    notes = list(work.glob(name if name != "*" else "**/*.json"))
    assert notes
    for note in notes:
        old = note.read_bytes()
        note.write_bytes(old[: len(old) // 2] if text is None else text)
    assert finished(source, work) == expected


def changed(file: Path, change) -> None:
    """Changes what a note says, with the seal that it had."""
    found = json.loads(file.read_bytes())
    change(found["value"])
    file.write_text(json.dumps(found, separators=(",", ":")))


def sealed(file: Path, change) -> None:
    """Changes what a note says, with a new seal, as somebody may who knows how."""
    changed(file, change)
    found = json.loads(file.read_bytes())
    folder = file.parent if file.parent.name != "done" else file.parent.parent
    job = json.loads((folder / "job.json").read_bytes())["key"]
    value = json.dumps(found["value"], separators=(",", ":"), ensure_ascii=False)
    name = file.relative_to(folder)
    found["seal"] = hashlib.sha256(f"{job}\n{name}\n{value}".encode()).hexdigest()
    file.write_text(json.dumps(found, separators=(",", ":"), ensure_ascii=False))


def first(plan) -> dict:
    return next(layer for layer in plan["layers"] if layer["path"] == "blocks.2.0.fc")


PLANS = {
    "other ranks": lambda plan: first(plan).update(ranks=[1]),
    "huge ranks": lambda plan: first(plan).update(ranks=[2**62]),
    "beyond 64 bits": lambda plan: first(plan).update(ranks=[2**70]),
    "no ranks": lambda plan: first(plan).update(ranks=[]),
    "negative ranks": lambda plan: first(plan).update(ranks=[-1]),
    "many ranks": lambda plan: first(plan).update(ranks=[1, 2, 3, 4]),
    "another method": lambda plan: first(plan).update(method="tucker2", ranks=[2, 2]),
    "an unknown method": lambda plan: first(plan).update(method="../x"),
    "another layer": lambda plan: first(plan).update(path="../../x"),
    "a layer less": lambda plan: plan["layers"].pop(),
    "a layer more": lambda plan: plan["layers"].append(
        {"path": "x", "method": "svd", "ranks": [1]}
    ),
    "a layer twice": lambda plan: plan["layers"].append(plan["layers"][0]),
    "another version": lambda plan: plan.update(version=9),
    "left alone": lambda plan: first(plan).update(method=None, ranks=[]),
}


@pytest.mark.parametrize("change", PLANS.values(), ids=PLANS)
def test_a_plan_that_was_edited_is_made_anew(
    source: Path, work: Path, expected: dict[str, str], change
) -> None:
    changed(work / "plan.json", change)
    assert finished(source, work) == expected


@pytest.mark.parametrize("change", PLANS.values(), ids=PLANS)
def test_an_edited_plan_with_a_new_seal_does_no_harm(source: Path, work: Path, change) -> None:
    sealed(work / "plan.json", change)
    before = contents(source)
    try:
        finished(source, work)
    except rf.RankfoldError:
        assert not (work.parent / "out").exists()
    assert contents(source) == before
    assert {file.name for file in work.parent.iterdir()} <= {"out", ".out.rankfold"}


DONE = {
    "another hash": lambda done: done.update(sha256="0" * 64),
    "another file": lambda done: done.update(file="../x"),
    "other errors": lambda done: done.update(errors={"blocks.0.0.fc": 0.0}),
    "other tensors": lambda done: done.update(tensors={"x": 1}),
}


@pytest.mark.parametrize("change", DONE.values(), ids=DONE)
def test_a_record_that_was_edited_is_made_anew(
    source: Path, work: Path, expected: dict[str, str], change
) -> None:
    changed(next(iter(work.glob("done/*-00001-*.json"))), change)
    assert finished(source, work) == expected


def test_a_record_of_another_file_is_none(
    source: Path, work: Path, expected: dict[str, str]
) -> None:
    one, two = sorted(work.glob("done/*.json"))
    shutil.copy(one, two)
    assert finished(source, work) == expected


def bent(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)


FILES = {
    "a bit": bent,
    "cut short": lambda file: os.truncate(file, 50),
    "nothing": lambda file: os.truncate(file, 0),
    "gone": Path.unlink,
    "a folder": lambda file: (file.unlink(), file.mkdir()),
    "a pipe": lambda file: (file.unlink(), os.mkfifo(file)),
    "a link": lambda file: (
        file.rename(file.parent.parent / "elsewhere"),
        file.symlink_to(file.parent.parent / "elsewhere"),
    ),
}


@pytest.mark.parametrize("damage", FILES.values(), ids=FILES)
def test_a_finished_file_that_was_changed_is_written_anew(
    source: Path, work: Path, expected: dict[str, str], damage
) -> None:
    damage(next(iter(work.glob("new-*/*-00001-*"))))
    assert finished(source, work) == expected
    assert not any(file.is_symlink() for file in (work.parent / "out").iterdir())


def test_what_else_lies_there_is_not_published(
    source: Path, work: Path, expected: dict[str, str]
) -> None:
    (files,) = work.glob("new-*")
    (files / "evil.py").write_text("raise SystemExit")
    (files / "plan.json.fresh").write_text("{}")
    (files / "weights-00003-of-00003.safetensors.0.part").write_text("")
    (files / "folder").mkdir()
    (files / "folder" / "x").write_text("")
    (files / "link").symlink_to(source)
    assert finished(source, work) == expected
    assert source.is_dir()


@pytest.mark.parametrize("name", ["new-*", "done", "plan.json", "job.json", "lock", ""])
def test_links_lead_nowhere(
    source: Path, work: Path, expected: dict[str, str], name: str, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "elsewhere"
    (place,) = work.glob(name) if name else [work]
    shutil.move(place, elsewhere)
    place.symlink_to(elsewhere)
    before = contents(elsewhere) if elsewhere.is_dir() else elsewhere.read_bytes()
    if name in ("lock", ""):
        with pytest.raises(rf.RankfoldError, match="is a link"):
            finished(source, work)
    else:
        assert finished(source, work) == expected
    after = contents(elsewhere) if elsewhere.is_dir() else elsewhere.read_bytes()
    assert after == before
    assert not (tmp_path / "out").is_symlink()


def test_a_note_is_not_written_through_a_link(
    source: Path, work: Path, expected: dict[str, str], tmp_path: Path
) -> None:
    precious = tmp_path / "precious"
    precious.write_text("as it is")
    for name in ("plan.json", "job.json", "done/weights-00003-of-00003.safetensors.json"):
        (work / f"{name}.fresh").symlink_to(precious)
    (work / "plan.json").unlink()
    assert finished(source, work) == expected
    assert precious.read_text() == "as it is"


class Unnamed:
    """A policy of somebody else, whose repr is its address."""

    name, judges = "unnamed", "layer"

    def __init__(self, share: float) -> None:
        self.policy = rf.Ratio(share)

    def allocate(self, layers):
        return self.policy.allocate(layers)


def test_a_policy_without_a_repr_goes_on_from_its_own_work(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop(source, tmp_path / "out", monkeypatch, Unnamed(0.4))
    with pytest.raises(rf.RankfoldError, match="unfinished run"):
        rf.compress_checkpoint(source, tmp_path / "out", Unnamed(0.3))
    monkeypatch.setattr(planning, "planned", lambda *a, **k: pytest.fail("planned again"))
    rf.compress_checkpoint(source, tmp_path / "out", Unnamed(0.4))


def test_other_settings_are_refused_until_the_work_is_finished(source: Path, work: Path) -> None:
    before = contents(work)
    for settings in ({"seed": 1}, {"exclude": "*.0.*"}, {"methods": ["svd"]}):
        with pytest.raises(rf.RankfoldError, match="unfinished run"):
            rf.compress_checkpoint(source, work.parent / "out", POLICY, **settings)
    assert contents(work) == before


@pytest.mark.parametrize("name", ["config.json", "model-00002-of-00003.safetensors"])
def test_work_on_a_checkpoint_that_has_changed_since_is_discarded(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    own = shutil.copytree(source, tmp_path / "own")
    stop(own, tmp_path / "out", monkeypatch)
    if name == "config.json":
        (own / name).write_text('{"model_type": "gpt2"}')
    else:
        stat = (own / name).stat()
        bent(own / name)
        os.utime(own / name, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    rf.compress_checkpoint(own, tmp_path / "expected", POLICY)
    rf.compress_checkpoint(own, tmp_path / "out", POLICY)
    assert contents(tmp_path / "out") == contents(tmp_path / "expected")
    assert not (tmp_path / ".out.rankfold").exists()


def test_a_copy_of_the_checkpoint_goes_on_from_the_same_work(
    source: Path, work: Path, expected: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    copied = shutil.copytree(source, work.parent / "elsewhere")
    monkeypatch.setattr(planning, "planned", lambda *a, **k: pytest.fail("planned again"))
    assert finished(copied, work) == expected


@pytest.mark.skipif(not hasattr(os, "chown") or os.geteuid() != 0, reason="cannot give files away")
def test_the_work_of_another_user_is_neither_used_nor_touched(
    source: Path, work: Path, expected: dict[str, str]
) -> None:
    for entry in (work, *work.rglob("*")):
        os.chown(entry, 65534, 65534)
    (first_of_two, *_) = sorted(work.glob("new-*/*-00001-*"))
    bent(first_of_two)
    digest = hashlib.sha256(first_of_two.read_bytes()).hexdigest()
    sealed(next(work.glob("done/*-00001-*.json")), lambda done: done.update(sha256=digest))
    before = contents(work)
    rf.compress_checkpoint(source, work.parent / "out", POLICY)
    assert contents(work.parent / "out") == expected
    assert contents(work) == before
    assert {entry.name for entry in work.parent.iterdir()} == {"out", work.name}


@pytest.mark.skipif(os.name != "posix", reason="has no modes")
def test_a_work_folder_is_its_owners_alone(source: Path, work: Path) -> None:
    assert work.stat().st_mode & 0o777 == 0o700
    work.chmod(0o770)
    with pytest.raises(rf.RankfoldError, match="can be written by others"):
        rf.compress_checkpoint(source, work.parent / "out", POLICY)


def test_an_earlier_result_that_was_put_aside_comes_back(
    source: Path, expected: dict[str, str], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    rf.compress_checkpoint(source, out, rf.Ratio(0.8))
    earlier = contents(out)
    work = tmp_path / ".out.rankfold"
    work.mkdir()
    out.rename(work / "old")
    single = sound(tmp_path / "x.safetensors", {"norm": ("U8", (1,), b"1")})
    with pytest.raises(rf.RankfoldError):
        rf.compress_checkpoint(single, out, POLICY)
    with pytest.raises(rf.RankfoldError, match="unknown"):
        rf.compress_checkpoint(source, out, POLICY, methods=["none"])
    assert contents(out) == earlier
    assert finished(source, work) == expected


def test_what_a_finished_run_left_behind_is_tidied_up(
    source: Path, work: Path, expected: dict[str, str]
) -> None:
    left = shutil.copytree(work, work.parent / "left")
    assert finished(source, work) == expected
    shutil.copytree(left, work)
    assert finished(source, work) == expected
    shutil.copytree(left, work)
    shutil.copytree(source, work / "old")
    rf.compress_checkpoint(source, work.parent / "out", rf.Ratio(0.3))
    assert not work.exists()


def test_the_seal_is_of_the_text() -> None:
    text = msgspec.json.encode({"a": 0.1 + 0.2, "b": "é"})
    assert text == json.dumps(json.loads(text), separators=(",", ":"), ensure_ascii=False).encode()
