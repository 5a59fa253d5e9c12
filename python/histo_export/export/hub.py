"""Bundles in repositories of Hugging Face's hub, or of a server with the same interface (`$HF_ENDPOINT`).

huggingface_hub does the work, and knows the token, the cache and the settings of the user. A bundle from there is
checked like one on the disk (`bundle.open_bundle`): every sha256, before any file is loaded.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from histo_export.bundle_files import CARD, CONFIG, COREML, GOLDEN, MODELS, TRAINED_ON
from histo_export.errors import HistoError, UsageError, one_line
from histo_export.export.bundle import Bundle
from histo_export.export.formats import FORMATS
from histo_export.extras import needs

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

SCHEME = "hf:/"
"""What the address of a bundle begins with; a `Path` has made one slash of two."""
_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]*"
_ADDRESS = re.compile(rf"hf:/{{1,2}}(?P<name>{_NAME}/{_NAME})(?:@(?P<revision>[^@\s]+))?")
_FILES = (
    *(CONFIG, CARD, GOLDEN, TRAINED_ON, *MODELS),
    *("model.bin", "model.ncnn.bin", f"{COREML}/Manifest.json", f"{COREML}/Data/com.apple.CoreML/*"),
    *("triton/*/config.pbtxt", "triton/*/labels.txt", "triton/*/1/model.onnx"),
    *("timm/config.json", "timm/model.safetensors"),
)
"""What is downloaded of a repository; anything else in it, such as weights as pickles or Triton's models in Python, is
left there."""
LOG_IN = "Log in with hf auth login, or set HF_TOKEN"


@dataclass(frozen=True)
class Pushed:
    """What has been published: the repository's name, the commit (hash) and its page."""

    repository: str
    commit: str
    url: str


def local_bundle(bundle: str | Path) -> Path:
    """The folder of a bundle: `bundle` itself, or for `hf://org/name` or `hf://org/name@revision` a folder in the hub's
    cache, which is downloaded if necessary. Without a network the cache is used as it is.

    Raises:
        UsageError: the address is not one, there is no such repository or revision, or huggingface_hub is missing.
        HistoError: the hub can't be reached and the cache has no such bundle, or the download failed.
    """
    text = str(bundle)
    if not text.startswith(SCHEME):
        return Path(bundle)
    if (address := _ADDRESS.fullmatch(text)) is None:
        raise UsageError(text, "is not the address of a bundle", "Use hf://ORG/NAME or hf://ORG/NAME@REVISION")
    name, revision = address["name"], address["revision"]
    shown = f"hf://{name}" + (f"@{revision}" if revision else "")
    needs(shown, "hub")
    from huggingface_hub import snapshot_download

    _quiet_unless_terminal()
    with _explained(shown):
        folder = Path(
            snapshot_download(name, revision=revision, allow_patterns=list(_FILES), library_name="histo-export")
        )
    if not (folder / CONFIG).is_file():
        raise UsageError(shown, f"holds no bundle (no {CONFIG})", "Name a repository that histo push wrote")
    return folder


def push(bundle: Bundle, name: str, *, revision: str | None = None, private: bool = False, create: bool) -> Pushed:
    """Publishes a bundle in one commit: all of it is in the repository then, or nothing.

    Files of an earlier bundle there that this one lacks are removed in the same commit.

    Args:
        bundle: opened, so that each of its files has been checked.
        name: of the repository, "org/name".
        revision: a branch; default "main".
        private: a repository that is made can be read by its owners only.
        create: whether a repository or branch that does not exist is made.

    Raises:
        UsageError: the name is not one, there is no token, or no such repository or branch.
        HistoError: the hub can't be reached, refuses the files, or somebody else has pushed meanwhile.
    """
    if re.fullmatch(rf"{_NAME}/{_NAME}", name) is None:
        raise UsageError(f"The repository {name}", "is not of the form org/name", "Use e.g. histo push BUNDLE org/name")
    needs("histo push", "hub")
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    _quiet_unless_terminal()
    api = HfApi(library_name="histo-export")
    files = [CONFIG, *bundle.config.histo.files, *([CARD] if (bundle.path / CARD).is_file() else [])]
    files = list(dict.fromkeys(files))
    with _explained(name):
        api.whoami()
        head = _head(api, name, revision, private, create)
        there = set(api.list_repo_files(name, revision=head))
        obsolete = {file for file in there if _is_of_bundle(file)} - set(files)
        commit = api.create_commit(
            name,
            [
                *(CommitOperationAdd(file, str(bundle.path / file)) for file in files),
                *(CommitOperationDelete(file) for file in sorted(obsolete)),
            ],
            commit_message=f"Bundle of {len(bundle.models)} model files, written by histo push",
            revision=revision,
            parent_commit=head,  # a commit of somebody else in between is not overwritten
        )
    return Pushed(name, commit.oid, str(commit.commit_url))


def _is_of_bundle(file: str) -> bool:
    return file in (GOLDEN, TRAINED_ON) or any(row.makes(file) for row in FORMATS.values())


def _head(api: HfApi, name: str, revision: str | None, private: bool, create: bool) -> str:
    """The hash of the newest commit of a branch, which is made if `create` is set."""
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    try:
        return str(api.repo_info(name, revision=revision).sha)
    except RevisionNotFoundError:
        if not create:
            raise
        api.create_branch(name, branch=str(revision), exist_ok=True)
    except RepositoryNotFoundError:
        if not create:
            raise
        api.create_repo(name, private=private, exist_ok=True)
        if revision is not None:
            api.create_branch(name, branch=revision, exist_ok=True)
    return str(api.repo_info(name, revision=revision).sha)


def _quiet_unless_terminal() -> None:
    """No progress but on a terminal, and no lines about each attempt: the last error is told."""
    from huggingface_hub.utils.logging import set_verbosity_error
    from huggingface_hub.utils.tqdm import disable_progress_bars

    set_verbosity_error()
    if not sys.stderr.isatty():
        disable_progress_bars()


@contextmanager
def _explained(thing: str) -> Iterator[None]:
    """Turns errors of huggingface_hub into one line."""
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        LocalTokenNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        yield
    except HistoError:
        raise
    except LocalTokenNotFoundError as error:
        raise UsageError(thing, "needs a token of the hub, and there is none", LOG_IN) from error
    except GatedRepoError as error:
        raise UsageError(thing, "is gated, and this token has no access", f"Ask its owner for it. {LOG_IN}") from error
    except RepositoryNotFoundError as error:
        cause = "does not exist on the hub, or this token may not see it"
        raise UsageError(thing, cause, f"Check the name; histo push makes a new one with --create. {LOG_IN}") from error
    except RevisionNotFoundError as error:
        raise UsageError(thing, "has no such revision", "Check it; histo push makes a branch with --create") from error
    except HFValidationError as error:
        raise UsageError(thing, f"is not a name on the hub ({one_line(error)})", "Correct it") from error
    except LocalEntryNotFoundError as error:
        cause = "is not completely in the cache, and the hub can't be reached"
        raise HistoError(thing, cause, "Check the network, or run once with a network") from error
    except HfHubHTTPError as error:
        raise _refused(thing, error) from error
    except Exception as error:  # the transport's own errors, a full disk, an upload that was refused
        if isinstance(error.__cause__, HfHubHTTPError):
            raise _refused(thing, error.__cause__) from error
        raise HistoError(
            thing, f"failed ({one_line(error)})", "Check the network and the disk, then run again"
        ) from error


def _refused(thing: str, error: HfHubHTTPError) -> HistoError:
    """What to say of an answer of the hub that is an error."""
    code = error.response.status_code
    if code in (401, 403):
        return UsageError(thing, f"was refused by the hub ({code}): the token may not do this", LOG_IN)
    if code in (409, 412):
        return HistoError(thing, f"has changed meanwhile ({code})", "Look at the new commit, then run again")
    return HistoError(thing, f"was refused by the hub ({code}: {one_line(error)})", "Nothing is published. Try again")
