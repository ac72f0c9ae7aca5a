"""Checks that the Hugging Face hub is reachable if something must be downloaded."""

from pathlib import Path
from typing import Literal

from huggingface_hub import get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled


def check_reachable(
    name: str,
    file: str,
    kind: Literal["model", "dataset"] = "model",
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
) -> None:
    """Raise at once if something must be downloaded and the hub cannot be reached.

    Hugging Face's own loaders retry for half a minute. `file` is one that every model or dataset
    on the hub has: if it is cached, or if the hub answers at all, this returns silently.
    """
    try:
        cached = try_to_load_from_cache(
            name, file, cache_dir=cache_dir, revision=revision, repo_type=kind
        )
        if isinstance(cached, str):
            return
        get_hf_file_metadata(hf_hub_url(name, file, revision=revision, repo_type=kind), token=token)
    except (HfHubHTTPError, HFValidationError):
        return
    except Exception as error:  # the exception types depend on the client version
        offline = isinstance(error, OfflineModeIsEnabled)
        why = "HF_HUB_OFFLINE is set" if offline else str(error).strip().splitlines()[0]
        raise OSError(
            f"{name} is neither a local folder nor cached, and the hub cannot be reached ({why}): "
            f"check the name and the network, or give a folder that holds the {kind}."
        ) from None
