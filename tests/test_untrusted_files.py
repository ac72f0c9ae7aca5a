"""Files from strangers: an error in a sentence or a result, never a crash or an execution."""

import ast
import gzip
import importlib
import io
import json
import operator
import pickle
import pkgutil
import re
import shutil
import zipfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jaxtyping import Float, Int64
from safetensors.torch import load_file
from torch import Tensor

import interp
from interp.counting.run import Run
from interp.counting.stats import FiringStats
from interp.inference.claims import load_claims
from interp.models.load import AutoConfig, load, outline
from interp.results import artifacts
from interp.results.saved import Saved
from interp.runs.folder import begin
from interp.selections.neuron_selection import NeuronSelection
from interp.text.sources import read_documents, read_prompts
from interp.text.tasks import read_task
from tests import tiny_models

for _, module, _ in pkgutil.walk_packages(interp.__path__, "interp."):
    importlib.import_module(module)  # classes are known once they are loaded
SAVED = sorted(Saved.__subclasses__(), key=lambda cls: cls.__name__)

fuzzed = settings(
    max_examples=200,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@dataclass(frozen=True)
class Reader:
    """A function of ours that reads a file, and what it reads."""

    file: str
    """Name of the file in its folder."""

    good: Callable[[Path], None]
    """Writes a file that can be read."""

    read: Callable[[Path], Any]
    """Reads it."""


def stats() -> FiringStats:
    fired = torch.arange(2 * 2 * 2 * 3).reshape(2, 2, 2, 3)
    return FiringStats(fired=fired, tokens=torch.full((2, 2), 30), languages=("en", "de"))


def selection() -> NeuronSelection:
    mask = torch.zeros(2, 2, 3, dtype=torch.bool)
    mask[0, 1, 2] = mask[1, 0, 0] = True
    return NeuronSelection(mask, ("en", "de"))


def lines(*rows: dict[str, Any]) -> bytes:
    return "\n".join(json.dumps(row, ensure_ascii=False) for row in rows).encode()


TEXT = lines({"id": 1, "text": "Ein Haus am See."}, {"id": 2, "text": "Zwei Häuser."})
TASK = lines(
    {"id": "a", "text": "Eins und", "endings": [" zwei", " drei"], "answer": 1},
    {"id": "b", "text": "Zwei und", "endings": [" zwei", " drei"], "answer": 0},
)
PLAN = {"n_layers": 2, "n_shards": 2, "languages": ["en", "de"], "wanted": {"moments": False}}


def of_language(read: Callable[[Path, str], Any]) -> Callable[[Path], Any]:
    return lambda path: read(path.parent, path.name.split(".")[0])


def documents(folder: Path, language: str) -> list[Any]:
    return list(read_documents(folder, language))


READERS = {
    "artifact": Reader("s.safetensors", lambda path: stats().save(path), FiringStats.load),
    "selection": Reader(
        "neurons.json", lambda path: selection().to_json(path), NeuronSelection.from_json
    ),
    "mask": Reader(
        "neurons.pth",
        lambda path: selection().to_lape_pth(path),
        lambda path: NeuronSelection.from_lape_pth(path, ("en", "de"), 3),
    ),
    "text": Reader(
        "de.txt",
        lambda path: write(path, "Ein Haus.\nZwei Häuser.\n".encode()),
        of_language(documents),
    ),
    "compressed text": Reader(
        "de.txt.gz",
        lambda path: write(path, gzip.compress(b"Ein Haus.\nZwei.\n", mtime=0)),
        of_language(documents),
    ),
    "rows": Reader("de.jsonl", lambda path: write(path, TEXT), of_language(documents)),
    "compressed rows": Reader(
        "de.jsonl.gz",
        lambda path: write(path, gzip.compress(TEXT, mtime=0)),
        of_language(documents),
    ),
    "prompts": Reader(
        "de.jsonl",
        lambda path: write(path, TEXT),
        of_language(lambda folder, code: read_prompts(folder, [code])),
    ),
    "task": Reader("de.jsonl", lambda path: write(path, TASK), of_language(read_task)),
    "run": Reader(
        "run.json",
        lambda path: begin(path.parent, PLAN),
        lambda path: Run.open(path.parent).status(),
    ),
    "claims": Reader(
        "claims.json", lambda path: interp.inference.save_claims([CLAIM], path), load_claims
    ),
}
CLAIM = interp.inference.Claim("name", "statement", "source", "on", "how", "command", 1.0, 0.5, 1.5)
DEEP = ("artifact", "selection", "task", "run")
"""Readers of JSON that were given nesting without end."""


def write(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def ends_well(reader: Reader, path: Path) -> bool:
    """Whether it was read; refused with a sentence of ours is the other good end."""
    try:
        reader.read(path)
    except (ValueError, FileNotFoundError) as error:
        refusal = error
    else:
        return True
    assert type(refusal) in (ValueError, FileNotFoundError), repr(refusal)
    assert len(str(refusal)) > 20, repr(refusal)
    return False


@pytest.fixture(params=sorted(READERS))
def reader(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Reader, Path, bytes]:
    found = READERS[request.param]
    path = tmp_path / found.file
    found.good(path)
    return found, path, path.read_bytes()


class TestBrokenBytes:
    def test_what_was_written_is_read(self, reader: tuple[Reader, Path, bytes]) -> None:
        found, path, _ = reader
        assert ends_well(found, path)

    @pytest.mark.campaign
    @fuzzed
    @given(data=st.data())
    def test_changed_cut_and_added_bytes_end_well(
        self, reader: tuple[Reader, Path, bytes], data: st.DataObject
    ) -> None:
        found, path, good = reader
        first = data.draw(st.integers(0, len(good)))
        last = data.draw(st.integers(first, min(len(good), first + 40)))
        path.write_bytes(good[:first] + data.draw(st.binary(max_size=40)) + good[last:])
        ends_well(found, path)

    @pytest.mark.campaign
    @fuzzed
    @given(content=st.binary(max_size=300))
    def test_any_bytes_end_well(self, reader: tuple[Reader, Path, bytes], content: bytes) -> None:
        found, path, _ = reader
        path.write_bytes(content)
        ends_well(found, path)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 2**70)
    | st.floats()
    | st.sampled_from(["en", "de", "\udc80", "polyneuron", "1"]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["en", "de", "0", "x", ""]), inner, max_size=4)
    ),
    max_leaves=12,
)


class TestWrongContent:
    """Whole files that say something else than they should."""

    @pytest.mark.campaign
    @fuzzed
    @given(data=st.data(), value=JSON)
    @pytest.mark.parametrize("name", ["selection", "task", "rows", "prompts"])
    def test_other_values_in_place_of_the_right_ones_end_well(
        self, tmp_path: Path, name: str, data: st.DataObject, value: Any
    ) -> None:
        reader = READERS[name]
        path = tmp_path / reader.file
        shutil.rmtree(tmp_path)
        tmp_path.mkdir()
        reader.good(path)
        text = path.read_text(encoding="utf-8")
        rows = [json.loads(row) for row in text.splitlines()] if ".jsonl" in path.name else [
            json.loads(text)
        ]  # fmt: skip
        changed = data.draw(st.sampled_from(range(len(rows))))
        rows[changed] = altered(rows[changed], value, data)
        path.write_text("\n".join(json.dumps(row) for row in rows))
        ends_well(reader, path)

    @pytest.mark.parametrize("name", DEEP)
    @pytest.mark.parametrize("opening", ["[", '{"a":'])
    def test_nesting_without_end_is_refused(self, tmp_path: Path, name: str, opening: str) -> None:
        reader = READERS[name]
        path = tmp_path / reader.file
        deep = opening * 100_000
        if name == "artifact":
            path.write_bytes(crafted('{"version":"1","x":' + deep))
        else:
            path.write_text(deep)
        assert not ends_well(reader, path)

    @pytest.mark.campaign
    @fuzzed
    @given(data=st.data(), value=JSON)
    def test_headers_with_a_true_checksum_are_not_believed(
        self, tmp_path: Path, data: st.DataObject, value: Any
    ) -> None:
        header = {
            "__metadata__": {"checksum": "", "version": "1", "kind": "FiringStats"}
            | {"labels": '{"languages": ["en", "de"]}', "provenance": "{}"},
            "fired": {"dtype": "I64", "shape": [1, 2, 1, 2], "data_offsets": [0, 32]},
            "tokens": {"dtype": "I64", "shape": [1, 2], "data_offsets": [32, 48]},
        }
        part = data.draw(st.sampled_from([*header, "labels"]))
        if part == "labels":
            header["__metadata__"][part] = json.dumps(value)
        else:
            header[part] = altered(header[part], value, data)
        header["__metadata__"] = {"checksum": "", **mapping(header.get("__metadata__"))}
        path = tmp_path / "s.safetensors"
        path.write_bytes(sealed(header, bytes(48)))
        reader = Reader(
            path.name, lambda path: None, lambda path: artifacts.load(path, "FiringStats")
        )
        if ends_well(reader, path) and part in ("fired", "tokens"):
            # What we believe, the library of the format believes as well, and reads the same.
            theirs, ours = load_file(path), artifacts.load(path, "FiringStats").tensors
            assert theirs.keys() == ours.keys()
            assert all(torch.equal(theirs[key], ours[key]) for key in ours)

    def test_an_unchanged_header_of_that_kind_is_read(self, tmp_path: Path) -> None:
        path = tmp_path / "s.safetensors"
        shape = {"dtype": "I64", "shape": [2], "data_offsets": [0, 16]}
        head = {"checksum": "", "version": "1", "kind": "X", "labels": "{}", "provenance": "{}"}
        path.write_bytes(sealed({"__metadata__": head, "a": shape}, bytes(range(16))))
        assert torch.equal(artifacts.load(path, "X").tensors["a"], load_file(path)["a"])

    @pytest.mark.parametrize(
        "wrong",
        [
            {"shape": [3]},
            {"shape": [-1, -2]},
            {"shape": [True, 2]},
            {"shape": [0, 2**70], "data_offsets": [0, 0]},
            {"data_offsets": [0, 8]},
            {"data_offsets": [8, 24]},
            {"data_offsets": [0, 2**60], "shape": [2**57]},
            {"dtype": "F8_E4M3"},
        ],
    )
    def test_tensors_that_are_not_where_the_header_says_are_refused(
        self, tmp_path: Path, wrong: dict[str, Any]
    ) -> None:
        path = tmp_path / "s.safetensors"
        shape = {"dtype": "I64", "shape": [2], "data_offsets": [0, 16]} | wrong
        head = {"checksum": "", "version": "1", "kind": "X", "labels": "{}", "provenance": "{}"}
        path.write_bytes(sealed({"__metadata__": head, "a": shape}, bytes(24)))
        with pytest.raises(ValueError, match=r"damaged|truncated"):
            artifacts.load(path, "X")

    @pytest.mark.parametrize(
        ("wrong", "n_bytes"),
        [
            ({"data_offsets": [0.0, 16.0]}, 16),
            ({"data_offsets": [False, 16]}, 16),
            ({"data_offsets": {"0": 0, "16": 16}}, 16),
            ({"shape": {"2": 2}}, 16),
            ({"shape": "", "data_offsets": [0, 8]}, 8),
            ({"shape": [2.0]}, 16),
            ({"shape": [2, *[1] * 64]}, 16),
            ({"shape": [0, 2**62, 2**62], "data_offsets": [0, 0]}, 0),
            ({"shape": [2**62, 2**62, 0], "data_offsets": [0, 0]}, 0),
        ],
    )
    def test_sizes_that_python_would_let_pass_are_refused(
        self, tmp_path: Path, wrong: dict[str, Any], n_bytes: int
    ) -> None:
        path = tmp_path / "s.safetensors"
        shape = {"dtype": "I64", "shape": [2], "data_offsets": [0, 16]} | wrong
        head = {"checksum": "", "version": "1", "kind": "X", "labels": "{}", "provenance": "{}"}
        path.write_bytes(sealed({"__metadata__": head, "a": shape}, bytes(n_bytes)))
        with pytest.raises(ValueError, match="is damaged, inside its header"):
            artifacts.load(path, "X")

    def test_what_a_result_lacks_is_named(self, tmp_path: Path) -> None:
        path = tmp_path / "s.safetensors"
        artifacts.save(path, "FiringStats", {"fired": torch.zeros(1)}, {"languages": []}, {})
        with pytest.raises(ValueError, match="has no tensor 'tokens'"):
            FiringStats.load(path)


@dataclass(frozen=True, kw_only=True)
class Made(Saved):
    """A result of a kind of its own; nothing but `Saved` looks at what it holds."""

    kind = "Made"
    made_by = "a test"

    rate: Float[Tensor, "language neuron"]
    count: Int64[Tensor, " neuron"]
    languages: tuple[str, ...]


class TestOtherThingsUnderTheRightNames:
    """The checksum fits, as anybody can make one, and names and kind are right."""

    GOOD: ClassVar = {"rate": torch.ones(2, 3), "count": torch.ones(3, dtype=torch.int64)}

    def read(self, folder: Path, tensors: dict[str, Tensor], languages: Any) -> Made:
        path = folder / "made.safetensors"
        artifacts.save(path, "Made", self.GOOD | tensors, {"languages": languages}, {})
        return Made.load(path)

    def test_what_is_as_it_should_be_is_read(self, tmp_path: Path) -> None:
        assert torch.equal(self.read(tmp_path, {}, ["en", "de"]).rate, torch.ones(2, 3))

    @pytest.mark.parametrize(
        ("tensors", "languages", "told"),
        [
            ({"rate": torch.ones(3)}, ["en", "de"], "rate is torch.float32 of shape"),
            ({"rate": torch.ones(2, 3, dtype=torch.int64)}, ["en", "de"], "rate is torch.int64"),
            (
                {"rate": torch.ones(2, 4)},
                ["en", "de"],
                "another part 4|count is",
            ),
            ({}, ["en"], "1 languages for 2"),
            ({}, [1, 2], "languages is"),
            ({}, "ab", "'ab' instead of a list"),
            ({}, 5, "instead of a list"),
            ({"more": torch.ones(1)}, ["en", "de"], "more"),
        ],
    )
    def test_what_is_not_is_refused(
        self, tmp_path: Path, tensors: dict[str, Tensor], languages: Any, told: str
    ) -> None:
        with pytest.raises(ValueError, match=told):
            self.read(tmp_path, tensors, languages)

    def test_every_class_says_its_kind_and_what_makes_it(self, tmp_path: Path) -> None:
        assert len(SAVED) == len({cls.kind for cls in SAVED}) == 27
        for cls in SAVED:
            with pytest.raises(FileNotFoundError) as error:
                cls.load(tmp_path / "none.safetensors")
            assert str(error.value).endswith(f"is missing. Make it with {cls.made_by}.")
            for name in re.findall(r"\binterp\.([a-z_.]+)\(", cls.made_by):
                assert callable(operator.attrgetter(name)(interp))

    @pytest.mark.slow
    @pytest.mark.parametrize("cls", SAVED, ids=lambda cls: cls.kind)
    @pytest.mark.parametrize("label", [5, None, "x", [], {}, [["a"]], ["en", "de"], {"a": 1}])
    def test_results_of_every_kind_are_read_or_refused_in_a_sentence(
        self, tmp_path: Path, cls: type[Saved], label: Any
    ) -> None:
        path = tmp_path / "s.safetensors"
        for shape in ((), (2,), (2, 2, 2)):
            tensors: dict[str, Tensor] = {}
            labels: dict[str, Any] = {}
            missing: re.Match[str] | None
            for _ in range(40):  # what it asks for, it gets, but not what it should be
                artifacts.save(path, cls.kind, tensors, labels, {})
                try:
                    cls.load(path)
                    break
                except ValueError as error:
                    missing = re.search(r"has no (tensor|label) '(\w+)'", str(error))
                    if missing is None:
                        break
                    what, name = missing.groups()
                    (tensors if what == "tensor" else labels)[name] = (
                        torch.zeros(shape) if what == "tensor" else label
                    )
            else:
                raise AssertionError(f"{cls.kind} asks for ever more: {sorted(tensors)}, {labels}")


def mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {"instead": value}


def altered(row: Any, value: Any, data: st.DataObject) -> Any:
    """The same with one entry replaced, however deep it is; or the whole."""
    if not isinstance(row, dict | list) or not row or data.draw(st.integers(0, 5)) == 0:
        return value
    keys: Any = list(row) if isinstance(row, dict) else range(len(row))
    key = data.draw(st.sampled_from(keys))
    copy = row.copy()
    copy[key] = altered(row[key], value, data)
    return copy


def sealed(header: dict[str, Any], content: bytes) -> bytes:
    """A file whose checksum is right, as anybody can make one."""
    return crafted(
        json.dumps(header, separators=(",", ":"))[len('{"__metadata__":{"checksum":""') :], content
    )


def crafted(rest: str, content: bytes = b"") -> bytes:
    start, after = b'{"__metadata__":{"checksum":"', b'"' + rest.encode()
    prefix = (len(start) + 32 + len(after)).to_bytes(8, "little")
    checksum = blake2b(prefix + after + content, digest_size=16).hexdigest().encode()
    return prefix + start + checksum + after + content


class Touch:
    """Something that makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


@pytest.fixture
def traps(tmp_path: Path) -> dict[str, bytes]:
    """Pickles that leave a trace, plain and in torch's archives."""
    trap = Touch(tmp_path / "executed")
    modern, old = io.BytesIO(), io.BytesIO()
    torch.save([[trap]], modern)
    torch.save([[trap]], old, _use_new_zipfile_serialization=False)
    return {
        "pickle": pickle.dumps(trap, protocol=2),
        "archive": modern.getvalue(),
        "old": old.getvalue(),
    }


class TestNothingIsExecuted:
    def test_the_traps_work(self, traps: dict[str, bytes], tmp_path: Path) -> None:
        for trap in traps.values():
            with suppress(Exception):  # a plain pickle is none of torch's, but it has run by then
                torch.load(io.BytesIO(trap), weights_only=False)
            assert (tmp_path / "executed").exists()
            (tmp_path / "executed").unlink()

    @pytest.mark.parametrize("name", sorted(READERS))
    def test_a_pickle_in_the_place_of_any_file_is_refused(
        self, traps: dict[str, bytes], tmp_path: Path, name: str
    ) -> None:
        reader = READERS[name]
        for trap in traps.values():
            (tmp_path / reader.file).write_bytes(trap)
            assert not ends_well(reader, tmp_path / reader.file)
            if reader.file.endswith(".gz"):
                (tmp_path / reader.file).write_bytes(gzip.compress(trap))
                ends_well(reader, tmp_path / reader.file)
        assert not (tmp_path / "executed").exists()

    def test_weights_that_are_a_pickle_are_not_run(
        self, traps: dict[str, bytes], tmp_path: Path
    ) -> None:
        folder = tiny_models.build("llama", tmp_path / "model")
        (folder / "model.safetensors").unlink()
        for trap in traps.values():
            (folder / "pytorch_model.bin").write_bytes(trap)
            with pytest.raises(ValueError, match="weights"):
                load(folder)
        assert not (tmp_path / "executed").exists()

    @pytest.mark.slow
    def test_no_file_of_the_library_unpickles(self) -> None:
        wrong = []
        for path in Path(interp.__file__).parent.rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Import | ast.ImportFrom):
                    names = {alias.name for alias in node.names} | {getattr(node, "module", "")}
                    if names & {"dill", "joblib", "marshal", "shelve", "yaml"} or (
                        "pickle" in names and names != {"pickle", "UnpicklingError"}
                    ):
                        wrong.append(f"{path.name}:{node.lineno}")
                elif isinstance(node, ast.Call) and called(node) in FORBIDDEN:
                    safe = [key.arg for key in node.keywords if key.arg == "weights_only"]
                    if not (called(node) == "torch.load" and safe):
                        wrong.append(f"{path.name}:{node.lineno}")
        assert wrong == []


FORBIDDEN = {"eval", "exec", "torch.load", "np.load", "pd.read_pickle", "os.system"}


def called(node: ast.Call) -> str:
    return ast.unparse(node.func)


REMOTE = """
from pathlib import Path
from transformers import {family}Config, {family}ForCausalLM
Path(__file__)
Path({trace!r}).touch()

class OwnConfig({family}Config):
    model_type = "own"

class OwnModel({family}ForCausalLM):
    config_class = OwnConfig
"""


class TestRemoteCode:
    @pytest.fixture
    def folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        """A checkpoint that brings code of its own."""
        monkeypatch.setattr(
            "transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "cache")
        )
        folder = tiny_models.build("llama", tmp_path / "model")
        config = json.loads((folder / "config.json").read_text())
        names = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}
        config |= {"auto_map": names, "model_type": "own", "architectures": ["OwnModel"]}
        (folder / "config.json").write_text(json.dumps(config))
        trace = str(tmp_path / "executed")
        (folder / "own.py").write_text(REMOTE.format(family="Llama", trace=trace))
        return folder

    @pytest.mark.parametrize("read", [load, outline], ids=["load", "outline"])
    def test_it_does_not_run_unless_it_is_asked_for(
        self, folder: Path, tmp_path: Path, read: Callable[[Path], Any]
    ) -> None:
        with pytest.raises(ValueError, match="trust_remote_code=True"):
            read(folder)
        assert not (tmp_path / "executed").exists()

    def test_the_class_of_the_library_is_taken_where_there_is_one(
        self, folder: Path, tmp_path: Path
    ) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"model_type": "llama"}))
        assert type(load(folder).bridge.original_model).__name__ == "LlamaForCausalLM"
        assert not (tmp_path / "executed").exists()

    def test_it_runs_where_it_is_asked_for_by_name(self, folder: Path, tmp_path: Path) -> None:
        transformers_config = AutoConfig.from_pretrained
        transformers_config(folder, trust_remote_code=True)
        assert (tmp_path / "executed").exists()


class TestBombs:
    """Small files that would unfold into large ones."""

    def test_an_archive_of_compressed_tensors_is_refused(self, tmp_path: Path) -> None:
        path = tmp_path / "neurons.pth"
        torch.save([[torch.zeros(4_000_000, dtype=torch.int64)]], path)
        squeezed = tmp_path / "squeezed.pth"
        with (
            zipfile.ZipFile(path) as old,
            zipfile.ZipFile(squeezed, "w", zipfile.ZIP_DEFLATED) as new,
        ):
            for name in old.namelist():
                new.writestr(name, old.read(name))
        assert squeezed.stat().st_size < 100_000
        with pytest.raises(ValueError, match="compressed"):
            NeuronSelection.from_lape_pth(squeezed, ("en",), 3)

    def test_a_plan_of_more_pieces_than_can_be_is_refused(self, tmp_path: Path) -> None:
        begin(tmp_path, PLAN | {"n_shards": 10**30})
        with pytest.raises(ValueError, match="is damaged"):
            Run.open(tmp_path).status()

    def test_an_archive_whose_names_are_no_text_is_refused(self, tmp_path: Path) -> None:
        path = tmp_path / "neurons.pth"
        selection().to_lape_pth(path)
        path.write_bytes(path.read_bytes().replace(b"/data/1", b"/da\x98\x961"))
        with pytest.raises(ValueError, match="cannot be read as tensors alone") as refusal:
            NeuronSelection.from_lape_pth(path, ("en", "de"), 3)
        assert refusal.type is ValueError

    def test_a_tensor_that_repeats_one_number_without_end_is_refused(self, tmp_path: Path) -> None:
        path = tmp_path / "neurons.pth"
        torch.save([[torch.zeros(1, dtype=torch.int64).expand(10**13)]], path)
        assert path.stat().st_size < 10_000
        with pytest.raises(ValueError, match="not a list by language"):
            NeuronSelection.from_lape_pth(path, ("en",), 3)
