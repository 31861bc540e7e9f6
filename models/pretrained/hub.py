"""The Hugging Face hub: config, weights and tokenizer of a repository, and why there are none."""

from __future__ import annotations

from pathlib import Path

from interp.errors import LabError

# Config, weights and tokenizer at the top of a repository; no code, no other formats.
_CONFIG_AND_TOKENIZER = ["config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"]
_CONFIG_AND_TOKENIZER += ["vocab.json", "merges.txt"]
_SAFETENSORS = ["model*.safetensors", "model.safetensors.index.json"]
_BIN = ["pytorch_model*.bin", "pytorch_model.bin.index.json"]


class NotOnHubError(LabError):
    """The hub shows no such repository, or cannot be asked."""


def fetch(name: str, revision: str | None) -> Path:
    """The directory of a repository on this machine, downloaded where it is not there yet.

    Raises:
        NotOnHubError: no such repository, or no way to the hub; the message is the end of a sentence.
        LabError: the repository is there but gated, without this revision, or gives no files.
    """
    directory = _download(name, revision, _SAFETENSORS)
    return directory if any(directory.glob("model*.safetensors")) else _download(name, revision, _BIN)


def fetch_tokenizer(name: str, revision: str | None) -> Path:
    """As `fetch`, without the weights.

    Raises:
        LabError: as there.
    """
    return _download(name, revision, [])


def _download(name: str, revision: str | None, weights: list[str]) -> Path:
    from huggingface_hub import errors, snapshot_download

    # "*/*": what lies deeper is other formats and code
    patterns = [*_CONFIG_AND_TOKENIZER, *weights]
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=patterns, ignore_patterns=["*/*"]))
    except errors.GatedRepoError as error:
        raise LabError(
            f"{name!r} is gated on the Hugging Face hub: ask for access at {_endpoint()}/{name}, then make this "
            "machine known with `hf auth login` or HF_TOKEN."
        ) from error
    except errors.RevisionNotFoundError as error:
        raise LabError(
            f"{name!r} has no revision {revision!r} on the Hugging Face hub; try without revision."
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise NotOnHubError(
            "the Hugging Face hub has no such repository or shows it only to its members: check the spelling (ids read "
            "owner/name), or log in with `hf auth login`"
        ) from error
    except errors.HFValidationError as error:
        raise NotOnHubError("it cannot be an id on the Hugging Face hub, which reads owner/name") from error
    except (errors.HTTPError, OSError) as error:
        raise _unreachable(name, error) from error


def _unreachable(name: str, error: Exception) -> LabError:
    """The error for a hub that gave no answer, or a bad one; or a disk that is full."""
    from huggingface_hub import constants
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    cause = error.__cause__ if isinstance(error, LocalEntryNotFoundError) else error
    if isinstance(cause, HfHubHTTPError) and cause.response is not None:
        status = cause.response.status_code
        advice = "check the token of this machine with `hf auth login`" if status in (401, 403) else "try again later"
        return LabError(f"cannot load {name!r}: the Hugging Face hub answers with status {status}; {advice}.")
    if isinstance(cause, OSError) and cause.errno is not None and not isinstance(cause, ConnectionError):
        return LabError(f"cannot download {name!r}: {cause.strerror or cause}.")
    if constants.HF_HUB_OFFLINE:
        return NotOnHubError("HF_HUB_OFFLINE is set and this machine has no whole copy from the Hugging Face hub")
    return NotOnHubError(
        f"the Hugging Face hub ({_endpoint()}) cannot be reached and this machine has no whole copy: check the "
        "connection"
    )


def _endpoint() -> str:
    from huggingface_hub import constants

    return constants.ENDPOINT
