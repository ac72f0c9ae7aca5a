"""Refusals that say what to do: of no run, no comparison, no language model; and what is taken."""

import copy
import errno
import inspect
import json
import math
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    CTRLConfig,
    CTRLLMHeadModel,
    T5Config,
)

from interp import cli
from interp.commands.collect import Collect
from interp.commands.options import in_options
from interp.counting.run import Run
from interp.counting.stats import FiringStats
from interp.models.load import load, outline, wrap
from interp.runs.folder import begin
from interp.selections.neuron_selection import NeuronSelection
from interp.selections.select import select, select_by_entropy
from interp.text.reading import read_corpora
from tests import tiny_models
from tests.campaigns.kills import LANGUAGES, made_up

KNOBS = ("--block-length", "16", "--n-shards", "4", "--hygiene", "off")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of two runs of two models, the first with a perplexity matrix."""
    folder = tmp_path_factory.mktemp("refusals")
    (folder / "text").mkdir()
    for code, lines in made_up().items():
        (folder / "text" / f"{code}.txt").write_text("\n".join(lines), encoding="utf-8")
    for seed, name in enumerate(("one", "other")):
        tiny_models.build("qwen2", folder / f"model-{name}", seed=seed)
        reading = ["--model", str(folder / f"model-{name}"), "--text", str(folder / "text")]
        run = str(folder / "runs" / name)
        cli.main(["collect", *reading, *KNOBS, "--out", run])
        cli.main(["find", run, "--fraction", "0.1", "--busy-quantile", "0.5"])
    cli.main(["deactivate", str(folder / "runs" / "one"), "--n-draws", "1"])
    return folder / "runs"


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    assert stop.value.code == 2
    return capsys.readouterr().err


# ---------------------------------------------------------------- folders


@pytest.mark.parametrize("command", ["find", "deactivate", "status", "page", "stability"])
def test_the_folder_above_runs_names_them(runs, command, capsys):
    said = refused([command, str(runs)], capsys)
    assert f"{runs} is not a run" in said
    assert f"{runs / 'one'}, {runs / 'other'}." in said


def test_a_folder_that_is_not_there_is_named_with_the_nearest_that_is(tmp_path):
    (tmp_path / "small").mkdir()
    with pytest.raises(FileNotFoundError, match=r"smal does not exist; did you mean .*small\?$"):
        Run.open(tmp_path / "smal")
    for name in ("gemma", "none/small"):
        with pytest.raises(FileNotFoundError, match=rf"{name} does not exist\. Check the name\.$"):
            Run.open(tmp_path / name)


def test_status_of_what_follows_a_run_counts_its_pieces(runs, tmp_path, capsys):
    folder = tmp_path / "off"
    shutil.copytree(runs / "one" / "deactivate", folder)
    n = len(list((folder / "pieces").iterdir()))
    assert n == 4 * len(LANGUAGES)
    cli.main(["status", str(folder)])
    assert f"{n} pieces are done, 0 running, 0 bad." in capsys.readouterr().out
    matrix = folder / "matrix.safetensors"
    matrix.write_bytes(matrix.read_bytes()[:-1])
    cli.main(["status", str(folder)])
    said = capsys.readouterr().out
    assert f"{n} pieces are done, 0 running, 1 bad." in said
    assert f"bad: {matrix} is truncated" in said
    assert "Delete it and run the command that made it again" in said
    for path in folder.glob("matrix*"):
        path.unlink()
    damaged = next((folder / "pieces").iterdir())
    damaged.write_bytes(damaged.read_bytes()[:-1])
    cli.main(["status", str(folder)])
    said = capsys.readouterr().out
    assert f"{n - 1} pieces are done, 0 running, 1 bad." in said
    assert damaged.name in said
    assert "run the command that began it again" in said


def test_what_follows_a_run_is_no_run(runs, capsys):
    said = refused(["find", str(runs / "one" / "deactivate")], capsys)
    assert "another command than `interp collect`" in said
    with pytest.raises(ValueError, match="give the run that it was measured on"):
        Run.open(runs / "one" / "deactivate")


@pytest.mark.slow
def test_a_figure_that_has_no_table_yet_is_named_with_its_command(runs, tmp_path, capsys):
    missing = f"perplexity_matrix (interp deactivate {runs / 'other'})."
    cli.main(["figure", str(runs / "other"), "--out", str(tmp_path)])
    assert f"Not drawn before their command has run: {missing}" in capsys.readouterr().out
    assert missing in refused(["figure", str(runs / "other"), "perplexity_matrix"], capsys)
    cli.main(["figure", str(runs / "one"), "--out", str(tmp_path)])
    assert "Not drawn" not in capsys.readouterr().out


# ---------------------------------------------------------------- comparisons


@pytest.mark.parametrize(
    ("language", "told"), [("xx", "such as de, zh or sw."), ("german", "such as de.")]
)
def test_a_lock_in_no_language_is_refused_before_a_model_is_opened(
    language, told, tmp_path, capsys
):
    (tmp_path / "prompts.txt").write_text("The train is\n")
    places = [str(tmp_path / name) for name in ("prompts.txt", "no-model", "lock")]
    said = refused(["lock", *places[:2], "--language", language, "--out", places[2]], capsys)
    assert f"--language is '{language}', and the detector cannot recognize" in said
    assert said.endswith(f"{told}\n")


@pytest.mark.parametrize(
    "command",
    [
        "collect {model} --languages {labels}",
        "deactivate {run} --model {model} --languages {labels}",
        "steer {run} --model {model}",
        "ask {run} --model {model}",
        "train {run} --model {model} --language {first} --labels {labels} --out {out}",
        "vector {run} --model {model} --language {first} --push residual --layer 1 --out {out}",
        "lock {prompts} {model} --language de --labels {labels} --out {out}",
    ],
)
def test_all_labels_without_text_are_named_before_a_model_is_opened(
    command, runs, tmp_path, capsys
):
    first, blank, missing = LANGUAGES
    for label, text in {first: "One line.", blank: " \n\n"}.items():
        (tmp_path / f"{label}.txt").write_text(text, encoding="utf-8")
    (tmp_path / "prompts.md").write_text("The train is\n")
    values = {"run": runs / "one", "first": first, "labels": " ".join(LANGUAGES)}
    values |= {name: tmp_path / name for name in ("model", "out")}
    arguments = command.format(**values, prompts=tmp_path / "prompts.md").split()
    said = refused([*arguments, "--text", str(tmp_path)], capsys)
    assert f"{tmp_path} holds no text in {missing!r}, {blank!r}: expected {missing}.txt" in said
    assert f"there is {first}.txt, {blank}.txt; {blank}.txt is empty or blank. Add text" in said


@pytest.mark.parametrize(
    ("sentence", "told"),
    [
        ("add text, or use n_shards=4 or fewer.", "add text, or use --n-shards 4 or fewer."),
        ("tokens_per_batch is 0; lower n_shards.", "--tokens-per-batch is 0; lower --n-shards."),
        ("load it with dtype=torch.float32.", "load it with --dtype float32."),
        ("give bos=\"auto\", or bos='none'", "give --bos auto, or --bos none"),
        ("runs/n_shards/x is no file", "runs/n_shards/x is no file"),
        ("tokens is 1 and no tokens is 2", "--tokens is 1 and no tokens is 2"),
        ("max_length is 9: use max_length=4", "--block-length is 9: use --block-length 4"),
        ("n_shards.json and n_shards(3)", "n_shards.json and n_shards(3)"),
        ("this run was started with 'n_shards'", "this run was started with 'n_shards'"),
        ("out of tokens, the bos and d_mlp=3", "out of tokens, the bos and d_mlp=3"),
        ("name it de; in Python, tags={'a.b': 1}. Or so.", "name it de. Or so."),
        ("add text, in Python or with interp.x(n_shards=1)", "add text"),
    ],
)
def test_arguments_of_python_are_named_as_options_of_the_command(sentence, told):
    assert in_options(sentence, Collect) == told


PYTHON = re.compile(
    r"Python|HubDataset|langid|intervene|interp\.[a-z]|\w\(|[a-z_]=[\"'\w{(]|\['|\w=\""
)
"""What means something to those alone who call the library."""

TEXTS: dict[str, dict[str, bytes]] = {
    "empty": {},
    "latin": {"de.txt": "für\n".encode("latin-1")},
    "zipped": {"de.txt.gz": b"\x1f\x8bnothing"},
    "rows": {"de.jsonl": b'{"text": "a"}\n{"text": \n'},
    "columns": {"de.jsonl": b'{"title": "a"}\n'},
    "twice": {"de.txt": b"a\n", "de.jsonl": b'{"text": "a"}\n'},
    "short": {f"{code}.txt": b"one line of text\n" for code in LANGUAGES},
}


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory, runs: Path) -> Path:
    """Folders of text that cannot be read, and models and runs that cannot be opened."""
    folder = tmp_path_factory.mktemp("texts")
    for name, files in TEXTS.items():
        (folder / name).mkdir()
        for file, content in files.items():
            (folder / name / file).write_bytes(content)
    (folder / "unknown").mkdir()
    (folder / "unknown" / "config.json").write_text('{"model_type": "no-such-kind"}')
    (folder / "adapter").mkdir()
    settings = {"peft_type": "LORA", "base_model_name_or_path": None, "r": 2, "lora_alpha": 3}
    (folder / "adapter" / "adapter_config.json").write_text(json.dumps(settings))
    (folder / "p.txt").write_text("der\nund\ndie\n")
    (folder / "none.txt").write_text("\n \n")
    shutil.copytree(runs / "one", folder / "damaged")
    (folder / "damaged" / "run.json").write_text('{"wanted": ')
    (folder / "task").mkdir()
    row = {"endings": ["a", "b"], "answer": 0}
    for code, names in (("de", "abc"), ("en", "abd")):
        rows = [json.dumps(row | {"id": name, "text": f"der Hund {name}"}) for name in names]
        (folder / "task" / f"{code}.jsonl").write_text("\n".join(rows))
    return folder


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("collect {model} --text {texts}/none", "does not exist; give a folder of files named"),
        ("collect {model} --text {texts}/latin/de.txt", "is a file; give a folder of files"),
        ("collect {model} --text {texts}/empty", "holds no text: expected files named <label>.txt"),
        ("collect {model} --text {text} --languages xx", "holds no text in 'xx': expected xx.txt"),
        ("collect {model} --text {texts}/latin", "line 1 is not UTF-8"),
        ("collect {model} --text {texts}/zipped", "is not a complete gzip file"),
        ("collect {model} --text {texts}/rows", "line 2 is not JSON"),
        ("collect {model} --text {texts}/columns", "the text is expected in 'text'"),
        ("collect {model} --text {texts}/twice", "keep one"),
        ("collect {model} --text {text} --languages DE", "in unusual case: name it de, or give"),
        ("collect {model} --text {text} --languages de deu", "rename one of them, and"),
        ("collect {model} --text {text} --block-length 900", "use --block-length 64 or less."),
        ("collect {model} --text {text} --n-shards 900", "or fewer, or add text."),
        ("collect {model} --text {text} --until-stable 2", "give a share, above 0 and up to 1"),
        ("collect {model} --text {text} --sentences pre --block-length 900", "--block-length 64 "),
        ("collect {texts}/p.txt --text {text}", "is not a folder: give a folder that holds a"),
        ("stability {run} --out {texts}", "is a folder: give the name of a file with --out."),
        ("deactivate {run} --out {texts}/p.txt", "is a file: give the name of a folder with"),
        ("find {run} --n 0", "--n is 0: give 1 or more units for each label."),
        ("steer {run} --natural 0", "--natural is 0: give 1 line or more."),
        ("plan {model} --block-length 0", "--block-length is 0; it must be 1 or more."),
        ("find {run} --model {model}", "does not look at the model: leave --model out."),
        ("export {texts}/p.txt", "is not a selection that can be read"),
        ("figure {texts}/p.txt", "holds no result that a figure can show: give a run, or"),
        ("lock {texts}/pp.txt {run} --language de --out v", "pp.txt does not exist; did you mean"),
        ("lock {texts}/none.txt {run} --language de --out v", "holds 0 prompts: half are searched"),
        ("lock {texts}/task {run} --language de --out v", "is a folder: give a .txt with one"),
        ("patch a b {model} --answers x x", "--answers are 'x', 'x': each only once."),
        ("write {run} Hund --to dee", "'dee' is not in this selection, which covers de, en"),
        ("write {run} Hund --with {texts}/change.json", "change.json does not exist."),
        ("bake {texts}/damaged --language de --out v", "run.json is damaged: delete it and"),
        ("collect {model} --text {texts}/short --n-shards 1", "use --block-length"),
        ("collect {model} --text {texts}/short --n-shards 1 --split held_out", "Add text."),
        ("collect {texts}/unknown --text {text}", "does not know the architecture"),
        ("collect {texts}/adapter --text {text}", "as base_model_name_or_path."),
        ("collect {texts}/short --text {text}", "holds no config.json"),
        ("collect {texts}/no-model --text {text}", "is not a folder"),
        ("plan {model} --languages", "give at least one, such as en."),
        ("share {texts}/task {model} --languages de en", "complete it."),
        ("deactivate {run} --text {texts}/empty", "holds no text in 'de'"),
        ("steer {run} --to de", "with `interp collect --moments`."),
        ("page {run}", "with `interp collect --contexts 8`."),
        ("find {texts}/empty", "Make one with `interp collect`."),
        ("vector {run} --language de --text {texts}/short --out v.gguf", "one shard): add text."),
        ("lock {texts}/p.txt {run} --language de --text {texts}/short --out v", ": add text."),
        ("patch ab abcde {model} --answers a b --at tokens", "--at last"),
        ("push {run}/neurons.json me/mine", "run `hf auth login` or set HF_TOKEN."),
    ],
)
def test_a_command_says_nothing_that_only_a_program_can_do(line, told, runs, texts, capsys):
    places = {"model": runs.parent / "model-one", "text": runs.parent / "text"}
    words = line.format(**places, texts=texts, run=runs / "one").split()
    if words[0] == "collect":
        words += ["--out", str(texts / "out")]
        words += [] if "--block-length" in words else ["--block-length", "16"]
    said = refused(words, capsys)
    assert said.startswith("interp: ")
    assert told in said
    assert not PYTHON.search(said)


@pytest.mark.parametrize("command", ["collect no-such-model", "stability {run}", "bake {run}"])
def test_a_place_that_cannot_be_written_is_refused_before_anything_else(
    runs, command, tmp_path, monkeypatch, capsys
):
    (tmp_path / "file").touch()
    line = command.format(run=runs / "one").split()
    line += ["--language", "de"] if line[0] == "bake" else []
    said = refused([*line, "--out", str(tmp_path / "file" / "new" / "x")], capsys)
    assert f"interp: {tmp_path / 'file'} is not a folder, so " in said
    assert said.endswith("new/x cannot be made: name another place with --out.\n")

    def full(dir: Path) -> str:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("tempfile.mkdtemp", full)
    said = refused([*line, "--out", str(tmp_path / "new" / "x")], capsys)
    assert said.startswith(f"interp: {tmp_path} cannot be written to (No space left on device): ")


def test_a_folder_of_another_kind_is_not_resumed_and_long_settings_are_cut_short(tmp_path):
    begin(tmp_path, {"recipe": {"steps": 3}, "text": "a"})
    with pytest.raises(ValueError, match=r"holds what something else wrote .* give another folder"):
        begin(tmp_path, {"task": "facts"})
    with pytest.raises(ValueError, match=r"another recipe \(recipe: steps was 3, now 4\)"):
        begin(tmp_path, {"recipe": {"steps": 4}, "text": "a"})
    with pytest.raises(ValueError, match=r"text: was 'a', now 'b{55} \.\.\.\)"):
        begin(tmp_path, {"recipe": {"steps": 3}, "text": "b" * 1000})


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("steer run --strength nan", "--strength: a number is expected, not 'nan'."),
        ("find run --fraction inf", "--fraction: a number is expected, not 'inf'."),
        ("plan model --contexts -1", "--contexts: a whole number, zero or more, is expected"),
        ("write run Hallo --max-new-tokens -1", "a whole number, zero or more, is expected"),
    ],
)
def test_a_number_that_means_nothing_is_refused_with_the_options(line, told, capsys):
    assert told in refused(line.split(), capsys)


def test_a_single_label_has_nothing_specific_to_it():
    generator = torch.Generator().manual_seed(0)
    fired = torch.randint(0, 50, (4, 1, 2, 30), generator=generator)
    alone = FiringStats(fired, torch.full((4, 1), 50), ("en",))
    for choose in (select_by_entropy, select, lambda stats: select(stats, "lap")):
        with pytest.raises(ValueError, match=r"of en alone.*collect two labels or more"):
            choose(alone)
    assert select(alone, "random").languages == ("en",)


def test_selections_of_two_models_are_compared_with_a_word(runs, capsys):
    one, other = str(runs / "one"), str(runs / "other")
    cli.main(["compare", one, other])
    said = capsys.readouterr().out
    assert f"A of {runs.parent / 'model-one'}; B of {runs.parent / 'model-other'}" in said
    cli.main(["compare", one, one])
    assert "different models" not in capsys.readouterr().out


def test_selections_that_do_not_say_their_model_are_compared_without(runs, tmp_path, capsys):
    NeuronSelection.from_json(runs / "one" / "neurons.json").to_json(tmp_path / "n.json")
    cli.main(["compare", str(tmp_path / "n.json"), str(runs / "other")])
    assert "different models" not in capsys.readouterr().out


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize(("n_repeated", "is_said"), [(40, True), (3, False)])
def test_text_that_is_mostly_repeated_is_said(runs, n_repeated, is_said, recwarn):
    model = load(runs.parent / "model-one")
    lines = [*made_up()["de"][:20], *["ein roter alter Hund im Haus"] * n_repeated]
    read_corpora({"de": lines}, ["de"], model, block_length=8, n_shards=2, hygiene="off")
    said = [str(entry.message) for entry in recwarn if "repeat others" in str(entry.message)]
    assert said == (["39 of 60 documents in de repeat others: a text counts once."] * is_said)


# ---------------------------------------------------------------- models


def test_a_model_that_is_no_decoder_of_text_is_refused_with_advice(tmp_path):
    T5Config(d_model=32, d_ff=48, num_layers=2, num_heads=2, d_kv=16).save_pretrained(tmp_path)
    tiny_models.tokenizer().save_pretrained(tmp_path)
    for opened in (load, outline):
        with pytest.raises(ValueError, match=r"\(t5\) does not continue text.*Use a decoder"):
            opened(tmp_path)


def test_an_architecture_whose_modules_do_not_show_its_mlps_is_refused_with_advice(tmp_path):
    sizes = {"n_embd": 32, "dff": 48, "n_layer": 2, "n_head": 2, "n_positions": 16}
    CTRLLMHeadModel(CTRLConfig(vocab_size=tiny_models.N_VOCAB, **sizes)).save_pretrained(tmp_path)
    tiny_models.tokenizer().save_pretrained(tmp_path)
    for opened in (load, outline):
        with pytest.raises(ValueError, match=r"no adapter for CTRLLMHeadModel.*docs/architectures"):
            opened(tmp_path)


def test_an_architecture_unknown_to_transformers_is_refused_with_advice(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "of-tomorrow"}))
    with pytest.raises(ValueError, match="update transformers"):
        load(tmp_path)


def test_a_model_in_memory_is_what_is_loaded_from_its_folder(runs):
    folder = runs.parent / "model-one"
    module = AutoModelForCausalLM.from_pretrained(folder)
    loaded = load(folder)
    wrapped = wrap(module, AutoTokenizer.from_pretrained(folder))
    ids = torch.randint(4, loaded.n_vocab, (2, 9), generator=torch.Generator().manual_seed(0))
    assert torch.equal(wrapped.logits(ids), loaded.logits(ids))
    assert wrapped.identity == loaded.identity
    assert wrapped.name == str(folder)
    with pytest.raises(ValueError, match="does not hold its tokenizer"):
        wrap(AutoModelForCausalLM.from_pretrained(folder))
    with pytest.raises(ValueError, match=r"give a model in memory to wrap\(model, tokenizer\)"):
        inspect.unwrap(load)(module)  # tests check types before it could
    with pytest.raises(ValueError, match="not int"):
        wrap(3)


class Adapted:
    """A stand-in for a PEFT model: a base, and what is added when it is merged."""

    def __init__(self, base: torch.nn.Module, change: torch.Tensor) -> None:
        self.base, self.change = base, change

    def merge_and_unload(self) -> torch.nn.Module:
        self.base.model.layers[1].mlp.down_proj.weight.data += self.change
        return self.base


def test_a_peft_model_is_merged_in_a_copy(runs):
    folder = runs.parent / "model-one"
    base = AutoModelForCausalLM.from_pretrained(folder)
    weight = base.model.layers[1].mlp.down_proj.weight
    change = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
    before = weight.detach().clone()
    wrapped = wrap(Adapted(base, change), AutoTokenizer.from_pretrained(folder))
    assert torch.equal(wrapped.w_out(1), (before + change).T)
    assert torch.equal(base.model.layers[1].mlp.down_proj.weight, before)


def adapter(
    folder: Path, base: Path, shape: tuple[int, int], **more: object
) -> dict[str, torch.Tensor]:
    """Write an adapter of rank 2 of the last layer's output projection; returns its matrices."""
    generator = torch.Generator().manual_seed(1)
    down = torch.randn(2, shape[1], generator=generator)
    up = torch.randn(shape[0], 2, generator=generator)
    name = "base_model.model.model.layers.2.mlp.down_proj"
    folder.mkdir(exist_ok=True)
    settings = {"peft_type": "LORA", "base_model_name_or_path": str(base), "r": 2, "lora_alpha": 3}
    (folder / "adapter_config.json").write_text(json.dumps(settings | more))
    tensors = {f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up}
    save_file(tensors, folder / "adapter_model.safetensors")
    return {"down": down, "up": up}


@pytest.mark.parametrize("stabilized", [False, True])
def test_an_adapter_is_its_base_with_the_change_added(runs, tmp_path, stabilized):
    base = load(runs.parent / "model-one")
    shape = (base.d_model, base.d_mlp)
    matrices = adapter(tmp_path, runs.parent / "model-one", shape, use_rslora=stabilized)
    adapted = load(tmp_path)
    change = torch.zeros(shape)
    for row in range(shape[0]):
        for column in range(shape[1]):
            pairs = zip(matrices["up"][row], matrices["down"][:, column], strict=True)
            change[row, column] = sum(float(a) * float(b) for a, b in pairs)
    change *= 3 / (math.sqrt(2) if stabilized else 2)
    torch.testing.assert_close(adapted.w_out(2), base.w_out(2) + change.T)
    assert torch.equal(adapted.w_out(1), base.w_out(1))
    assert adapted.name == str(tmp_path)
    assert adapted.identity["weights"] != base.identity["weights"]


def test_an_adapter_that_is_no_plain_lora_or_of_another_base_is_refused(runs, tmp_path):
    base = runs.parent / "model-one"
    shape = (load(base).d_model, load(base).d_mlp)
    patterned = {"alpha_pattern": {"^down_proj$": 1}}  # a regular expression
    for more in ({"use_dora": True}, {"peft_type": "IA3"}, {"r": 0}, patterned):
        adapter(tmp_path, base, shape, **more)
        with pytest.raises(ValueError, match=r"not a plain LoRA.*Merge it"):
            load(tmp_path)
    adapter(tmp_path, base, (shape[0], shape[1] + 1))
    with pytest.raises(ValueError, match="give it the base model"):
        load(tmp_path)
    adapter(tmp_path, base, shape, lora_alpha="x")
    with pytest.raises(ValueError, match="save it again"):
        load(tmp_path)
    adapter(tmp_path, base, shape)
    extra = {"base_model.model.model.embed_tokens.weight": torch.zeros(2)}
    save_file(extra, tmp_path / "adapter_model.safetensors")
    with pytest.raises(ValueError, match="is no LoRA matrix"):
        load(tmp_path)
    (tmp_path / "adapter_model.safetensors").unlink()
    with pytest.raises(ValueError, match="cannot be read"):
        load(tmp_path)


def test_copies_of_a_module_do_not_share_what_is_merged(runs):
    """What the test of a PEFT model rests on."""
    base = AutoModelForCausalLM.from_pretrained(runs.parent / "model-one")
    other = copy.deepcopy(base)
    other.model.layers[0].mlp.down_proj.weight.data += 1
    assert not torch.equal(
        base.model.layers[0].mlp.down_proj.weight, other.model.layers[0].mlp.down_proj.weight
    )
