"""Publish results on the Hugging Face hub, and read what others published.

Statistics, selections and pages become data sets; adapters and baked checkpoints become models. A
repository holds the files as they are, a generated card, and the checksum of every file.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from hashlib import file_digest, sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from huggingface_hub import CommitOperationAdd, HfApi, get_token, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

from interp.counting.run import Run
from interp.interventions.bake_card import FACTS, hub_name, public_name
from interp.selections.neuron_selection import NeuronSelection
from interp.text.languages import language_tag, worded

CHECKSUMS = "checksums.json"
"""The file of a repository that holds the checksum of every other."""

_RESULTS = (".safetensors", ".json", ".csv")

Kind = Literal["adapter", "checkpoint", "statistics", "selection", "page"]

_CARD = """---
library_name: polyneuron
tags: [polyneuron, {kind}]
{front}---

# {title}

{what} Made with [polyneuron](https://pypi.org/project/polyneuron/) {version}.

{note}| what | value |
| --- | --- |
{rows}

## Load it

```python
import interp

folder = interp.reports.from_hub("{repo}")
{load}
```

Files are checked against `{checksums}` when they are read.

## Cite

Name this repository and the paper of the method. Language neurons by entropy: Tang et al.,
*Language-Specific Neurons*, ACL 2024. Units by average precision: Kojima et al., NAACL 2024.
Sharing among languages: Wang et al., *Sharing Matters*, 2024.

```bibtex
@misc{{{key},
  title = {{{title}}},
  howpublished = {{Hugging Face hub, {repo}}},
  note = {{polyneuron {version}}}
}}
```
"""

_WHAT: Mapping[Kind, str] = {
    "statistics": "How often every neuron fires in every language, over shards of documents: "
    "intervals are by the jackknife over these shards.",
    "selection": "Units of a model, by label.",
    "page": "A page that shows what selected neurons fire on; open it in a browser.",
}

_LOAD: Mapping[Kind, str] = {
    "statistics": "run = interp.Run.open(folder)\nrun.firing.rate",
    "selection": 'neurons = interp.NeuronSelection.from_json(folder / "{file}")',
    "page": 'page = folder / "{file}"',
}


def push_to_hub(
    path: Path | str,
    repo: str,
    *,
    license: str | None = None,
    note: str = "",
    private: bool = False,
    token: str | None = None,
    endpoint: str | None = None,
) -> str:
    """Publish a run, a selection (.json), a page, an adapter or a checkpoint; returns the address.

    `repo` is "name/repository", made if it does not exist. `license` is that of what you publish,
    such as "cc-by-4.0"; a model's card already names its source's. Files go up as they are: where
    their provenance names a folder of yours, so does the copy. Publishing needs a token.

    >>> neurons.to_json(folder / "neurons.json")
    >>> address = interp.reports.push_to_hub(folder / "neurons.json", "me/babel-neurons", token="")
    Traceback (most recent call last):
        ...
    ValueError: Publishing, unlike reading, needs a token of the Hugging Face hub: ...
    """
    path = Path(path)
    parcel = _parcel(path)
    token = get_token() if token is None else token
    if not token:
        raise ValueError(
            "Publishing, unlike reading, needs a token of the Hugging Face hub: run `hf auth "
            "login` or set HF_TOKEN; in Python, give token."
        )
    contents: dict[str, bytes | Path] = dict(parcel.files)
    contents.pop(CHECKSUMS, None)  # of what was pulled, which is published again
    contents["README.md"] = parcel.card(repo, license, note).encode()
    sums = {name: _checksum(content) for name, content in sorted(contents.items())}
    contents[CHECKSUMS] = (json.dumps(sums, indent=1) + "\n").encode()
    api = HfApi(endpoint=endpoint, token=token, library_name="polyneuron")
    try:
        address = api.create_repo(repo, repo_type=parcel.repo_type, private=private, exist_ok=True)
        operations = [
            CommitOperationAdd(path_in_repo=name, path_or_fileobj=content)
            for name, content in contents.items()
        ]
        message = f"{parcel.kind} made with polyneuron"
        api.create_commit(repo, operations, commit_message=message, repo_type=parcel.repo_type)
    except HfHubHTTPError as error:
        raise OSError(f"{repo} was not published: {_first_line(error)}") from None
    return str(address)


def from_hub(
    repo: str,
    *,
    revision: str | None = None,
    folder: Path | str | None = None,
    token: str | None = None,
    endpoint: str | None = None,
) -> Path:
    """Download what `push_to_hub` published, and return the folder, by default in the hub's cache.

    Every file is compared with its checksum. Public repositories need no token.

    >>> interp.reports.from_hub("nobody/nothing", endpoint="http://127.0.0.1:9")
    Traceback (most recent call last):
        ...
    OSError: nobody/nothing cannot be read from the hub: ...
    """
    settings: dict[str, Any] = {"revision": revision, "token": token, "endpoint": endpoint}
    local = None if folder is None else str(folder)
    downloaded: Path | None = None
    for repo_type in ("dataset", "model"):
        try:
            downloaded = Path(
                snapshot_download(repo, repo_type=repo_type, local_dir=local, **settings)
            )
            break
        except RepositoryNotFoundError:
            continue
        except (OSError, ValueError, RuntimeError) as error:
            raise OSError(f"{repo} cannot be read from the hub: {_first_line(error)}") from None
    if downloaded is None:
        raise FileNotFoundError(
            f"{repo} is neither a data set nor a model on the hub that you may read: check its "
            "name, or give a token if it is private."
        )
    _verify(downloaded, repo)
    return downloaded


# ---------------------------------------------------------------- what is published


@dataclass(frozen=True, kw_only=True)
class _Parcel:
    """What is published of a path."""

    kind: Kind
    path: Path
    files: Mapping[str, Path]
    """By name in the repository."""

    provenance: Mapping[str, Any]
    """Empty for models, whose card is written."""

    @property
    def repo_type(self) -> str:
        return "model" if self.kind in ("adapter", "checkpoint") else "dataset"

    def card(self, repo: str, license: str | None, note: str) -> str:
        """The card: that of a model as it was written, with its new name."""
        title = repo.split("/")[-1]
        if self.repo_type == "model":
            written = (self.path / "README.md").read_text(encoding="utf-8")
            named = written.replace(f'"{self.path.name}"', f'"{repo}"')
            remark = f"# {title}\n\n{note}" if note else f"# {title}"
            return named.replace(f"# {self.path.name}", remark, 1)
        front = _front(self.provenance, license)
        rows = [f"| {name} | {value} |" for name, value in _rows(self.provenance)]
        (first, *_) = sorted(self.files)
        return _CARD.format(
            kind=self.kind,
            front="".join(f"{key}: {json.dumps(value)}\n" for key, value in front.items()),
            title=title,
            what=worded(_WHAT[self.kind], map(str, self.provenance.get("languages", ()))),
            version=version("polyneuron"),
            note=f"{note}\n\n" if note else "",
            rows="\n".join(rows),
            repo=repo,
            load=_LOAD[self.kind].format(file=first),
            checksums=CHECKSUMS,
            key=title.replace(" ", "-"),
        )


def _parcel(path: Path) -> _Parcel:
    """Which files of a path are published, and as what."""
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing: give what interp wrote.")
    if (path / FACTS).is_file():
        files = {file.name: file for file in sorted(path.iterdir()) if file.is_file()}
        kind: Kind = "adapter" if "adapter_config.json" in files else "checkpoint"
        return _Parcel(kind=kind, path=path, files=files, provenance={})
    if path.is_dir() and (path / "firing.safetensors").is_file():
        files = {file.name: file for file in sorted(path.iterdir()) if file.suffix in _RESULTS}
        record = Run.open(path).provenance
        return _Parcel(kind="statistics", path=path, files=files, provenance=record)
    if path.suffix == ".json" and path.is_file():
        NeuronSelection.from_json(path)  # refuses any other file
        stored = json.loads(path.read_text(encoding="utf-8")).get("provenance", {})
        files = {path.name: path}
        return _Parcel(kind="selection", path=path, files=files, provenance=_flat(stored))
    if path.suffix == ".html" and path.is_file():
        return _Parcel(kind="page", path=path, files={path.name: path}, provenance={})
    if (path / "index.html").is_file():
        files = {
            file.relative_to(path).as_posix(): file
            for file in sorted(path.rglob("*"))
            if file.is_file()
        }
        return _Parcel(kind="page", path=path, files=files, provenance={})
    raise ValueError(
        f"{path} is nothing to publish: give the folder of a finished run, a selection (.json), a "
        "neuron page, or a folder that `interp bake` or `interp adapter` wrote."
    )


def _flat(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """A selection's provenance: that of its run, with how the units were selected."""
    settings = dict(provenance.get("settings", {}))
    run = settings.pop("run", {})
    run = run if isinstance(run, dict) else {}
    return {**run, "selected": settings, "versions": provenance.get("versions", {})}


def _front(provenance: Mapping[str, Any], license: str | None) -> dict[str, Any]:
    """Lines of the card's header."""
    front: dict[str, Any] = {} if license is None else {"license": license}
    name = provenance.get("name")
    if isinstance(name, str) and hub_name(name) is not None:
        front["base_model"] = name
    labels = [str(label) for label in provenance.get("languages", ())]
    if tags := [tag for label in labels if (tag := language_tag(label)) is not None]:
        front["language"] = list(dict.fromkeys(tags))
    return front


def _rows(provenance: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Model, text, settings and versions, as far as they are known."""
    model, settings = provenance.get("model"), provenance.get("settings")
    if name := provenance.get("name"):
        yield "model", public_name(str(name))
    for key in ("weights", "tokenizer", "dtype"):
        if isinstance(model, Mapping) and key in model:
            yield f"model: {key}", f"`{model[key]}`"
    if languages := provenance.get("languages"):
        yield "labels", ", ".join(map(str, languages))
    if "n_shards" in provenance:
        yield "shards of documents", str(provenance["n_shards"])
    chosen = provenance.get("selected")
    for given in (settings, chosen):
        for key, value in given.items() if isinstance(given, Mapping) else ():
            text = public_name(value) if isinstance(value, str) else json.dumps(value)
            yield key.replace("_", " "), text.replace("|", "\\|")
    versions = provenance.get("versions")
    if isinstance(versions, Mapping):
        yield "versions", ", ".join(f"{name} {number}" for name, number in versions.items())


# ---------------------------------------------------------------- checksums


def _checksum(content: bytes | Path) -> str:
    if isinstance(content, bytes):
        return sha256(content).hexdigest()
    with content.open("rb") as file:
        return file_digest(file, "sha256").hexdigest()


def _verify(folder: Path, repo: str) -> None:
    path = folder / CHECKSUMS
    try:
        sums: Any = json.loads(path.read_text(encoding="utf-8"))
        names = {name: folder / name for name in sums}
    except (OSError, ValueError, TypeError):
        raise ValueError(
            f"{repo} holds no readable {CHECKSUMS}: it was not published by interp; read it with "
            "huggingface_hub."
        ) from None
    for name, file in names.items():
        if not file.resolve().is_file() or _checksum(file) != sums[name]:
            raise ValueError(
                f"{name} of {repo} is not what was published: delete {folder} and read it again."
            )


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
