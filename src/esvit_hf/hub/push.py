"""Model folders on the Hub: built aside, checked, and committed as a whole or not at all."""

import shlex
import shutil
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from huggingface_hub import CommitInfo, CommitOperationAdd, HfApi
from huggingface_hub.errors import HFValidationError, HTTPError
from huggingface_hub.utils import build_hf_headers, http_backoff, validate_repo_id
from tqdm.auto import tqdm

from esvit_hf.common.arguments import flat_arguments
from esvit_hf.common.errors import one_line
from esvit_hf.hub.cards import CARD_FILE, card_license, check_card, update_card
from esvit_hf.hub.completion import complete_folder
from esvit_hf.hub.errors import explained, may_pass, seconds_to_wait
from esvit_hf.hub.folder import check_files, copy_for_hub, foreign_code
from esvit_hf.hub.fresh_process import check_loads

__all__ = [
    "Publication",
    "check_repo_id",
    "check_target",
    "how_to_push",
    "prepare_repository",
    "publish",
    "push",
    "push_command",
    "push_result",
]

# The library repeats every request of an upload but the last, the commit.
_COMMIT_ATTEMPTS = 3
_OWN_CARD = "<!-- use: begin -->"


@dataclass(frozen=True)
class Publication:
    """Where a folder is on the Hub.

    Attributes:
        url: page of the repository, or of the pull request.
        commit: hash of the commit; `revision=` pins it.
        files: names of the files.
        left_out: names in the folder that stayed behind.
    """

    url: str
    commit: str | None
    files: list[str]
    left_out: list[str]


@flat_arguments
def push(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool = False,
    revision: str | None = None,
    create_pr: bool = False,
    dry_run: bool = False,
    trust_remote_code: bool = False,
    license: str | None = None,
) -> dict[str, Any]:
    """Publish a model folder on the Hub in one commit, after checking that it loads anywhere.

    What it lacks is added to what is published and said: code, image processor, card.

    Args:
        folder: output of a run, a conversion, or save_pretrained.
        repo_id: NAME/MODEL on the Hub; made if it does not exist.
        private: make the repository private.
        revision: branch to commit to, made from main if it does not exist.
        create_pr: open a pull request instead of changing the branch.
        dry_run: build and check, and send nothing.
        trust_remote_code: run code in the folder that is not this package's own, to check that it
            loads; read it before.
        license: license of the weights as the Hub spells it, such as apache-2.0, for the card; that
            of the card if not given.

    Returns:
        `url`, `commit`, `files` that were sent and names `left_out`.

    Raises:
        ValueError: the name, the folder or a file does not fit, or the Hub refuses; the message
            says what to do.
    """
    check_repo_id(repo_id)
    if not dry_run:
        with explained(repo_id):
            HfApi().whoami()
    result = publish(
        Path(folder),
        repo_id,
        private=private,
        revision=revision,
        create_pr=create_pr,
        dry_run=dry_run,
        load=True,
        trust_remote_code=trust_remote_code,
        license_name=license,
    )
    return asdict(result)


def check_repo_id(repo_id: str) -> None:
    """Check the form of a repository's name, before any work.

    Raises:
        ValueError: it is not NAME/MODEL as the Hub allows it.
    """
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ValueError(f"repo_id {repo_id!r}: {one_line(error)}") from error
    if "/" not in repo_id:
        raise ValueError(
            f"repo_id {repo_id!r} has no owner: write NAME/{repo_id}, with your name on the Hub"
        )


def prepare_repository(repo_id: str, *, private: bool = False, revision: str | None = None) -> None:
    """Make a repository, and a branch if one is named, unless they exist.

    Args:
        repo_id: NAME/MODEL on the Hub.
        private: whether it must be private.
        revision: branch that will be committed to.

    Raises:
        ValueError: nobody is logged in, the rights do not suffice, or the repository is public and
            should not be.
    """
    api = HfApi()
    with explained(repo_id):
        api.create_repo(repo_id, private=private or None, exist_ok=True)
        public = private and not api.model_info(repo_id).private
        if revision not in (None, "main") and not revision.startswith("refs/"):
            api.create_branch(repo_id, branch=revision, exist_ok=True)
    if public:
        raise ValueError(
            f"{repo_id} exists and is public: make it private in its settings, or leave out "
            f"--private"
        )


def publish(
    folder: Path,
    repo_id: str,
    *,
    private: bool = False,
    revision: str | None = None,
    create_pr: bool = False,
    dry_run: bool = False,
    load: bool = True,
    trust_remote_code: bool = False,
    extra_files: Mapping[str, Path] = MappingProxyType({}),
    message: str | None = None,
    license_name: str | None = None,
) -> Publication:
    """Build what belongs on the Hub in a temporary folder, check it, and commit it at once.

    Args:
        folder: model folder; it is only read.
        repo_id: NAME/MODEL on the Hub.
        private: whether the repository must be private.
        revision: branch to commit to.
        create_pr: open a pull request instead of changing the branch.
        dry_run: stop before anything is sent.
        load: check in new processes that the folder loads; takes seconds.
        trust_remote_code: let that run code which is not this package's own.
        extra_files: files from elsewhere, by their names in the repository.
        message: first line of the commit.
        license_name: license of the weights as the Hub spells it; that of the card if None.

    Returns:
        Where it is.

    Raises:
        ValueError: the folder does not pass the checks, or the Hub refuses.
    """
    with tempfile.TemporaryDirectory() as workplace:
        built = Path(workplace) / "model"
        try:
            left_out = _build(folder, built, repo_id, extra_files, license_name)
            if load:
                _check_loads(folder, built, trust=trust_remote_code)
        except ValueError as error:
            # What is to be corrected is in the folder, not in its copy.
            raise ValueError(str(error).replace(str(built), str(folder))) from error
        files = sorted(
            path.relative_to(built).as_posix() for path in built.rglob("*") if path.is_file()
        )
        api = HfApi()
        if dry_run:
            return Publication(f"{api.endpoint}/{repo_id}", None, files, left_out)
        prepare_repository(repo_id, private=private, revision=None if create_pr else revision)
        with explained(repo_id):
            made = _commit(
                api,
                repo_id,
                built,
                files,
                revision,
                create_pr,
                message or f"Add {folder.resolve().name}",
            )
        return Publication(made.pr_url or f"{api.endpoint}/{repo_id}", made.oid, files, left_out)


def _build(
    folder: Path,
    built: Path,
    repo_id: str,
    extra_files: Mapping[str, Path],
    license_name: str | None,
) -> list[str]:
    left_out = copy_for_hub(folder, built)
    for name, path in extra_files.items():
        (built / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, built / name)
    for sentence in complete_folder(built, folder.resolve().name):
        tqdm.write(f"{folder}: {sentence}")
    if _OWN_CARD in (built / CARD_FILE).read_text(encoding="utf-8"):
        update_card(built, repo_id, license_name)
    elif license_name is not None:
        raise ValueError(
            f"{folder / CARD_FILE} was not written by esvit-hf: write 'license: {license_name}' "
            f"into its metadata, and leave out --license"
        )
    check_card(built)
    if card_license(built) is None:
        tqdm.write(
            f"{folder}: the card states no license: give one with `esvit push --license`, or with "
            f"hub.license of the run"
        )
    check_files(built)
    return left_out


def _check_loads(folder: Path, built: Path, *, trust: bool) -> None:
    if (foreign := foreign_code(built)) and not trust:
        raise ValueError(
            f"{folder} brings code that is not this version's of esvit-hf ({', '.join(foreign)}), "
            f"and the check that it loads would run it: read it and give --trust_remote_code, or "
            f"save the model again with save_pretrained"
        )
    if code := sorted(path.name for path in built.glob("*.py")):
        tqdm.write(
            f"{folder}: its code ({', '.join(code)}) runs now, in new processes without your "
            f"environment variables and home folder, to check that it loads"
        )
    check_loads(built)


def check_target(folder: Path | None, repo_id: str | None) -> str:
    """Check that a program that shall publish its result has a folder for it, and a name.

    Returns:
        The name.

    Raises:
        ValueError: one of them is missing, or the name is not NAME/MODEL.
    """
    if folder is None or repo_id is None:
        raise ValueError(
            "push_to_hub needs an output_dir to publish and a hub_model_id, NAME/MODEL on the Hub"
        )
    check_repo_id(repo_id)
    return repo_id


def push_result(folder: Path, repo_id: str, *, private: bool = False) -> str | None:
    """Publish what a program has made; if that fails, say how to do it by hand and let the program
    end well.

    Args:
        folder: result of the program.
        repo_id: NAME/MODEL on the Hub.
        private: whether the repository must be private.

    Returns:
        The address, None if it failed.
    """
    try:
        return publish(folder, repo_id, private=private).url
    except ValueError as error:
        tqdm.write(
            f"the result could not be pushed: {error}; "
            f"{how_to_push(folder, repo_id, private=private)}"
        )
        return None


def push_command(folder: Path, repo_id: str, *, private: bool = False) -> str:
    """Return the command line that publishes a folder."""
    return shlex.join(["esvit", "push", str(folder), repo_id, *(["--private"] if private else [])])


def how_to_push(folder: Path, repo_id: str, *, private: bool = False) -> str:
    """Return where a result is that could not be pushed, and the command that does it."""
    return f"it is in {folder}, push it with: {push_command(folder, repo_id, private=private)}"


def _commit(
    api: HfApi,
    repo_id: str,
    built: Path,
    files: list[str],
    revision: str | None,
    create_pr: bool,
    message: str,
) -> CommitInfo:
    """Commit files together, again if that may help: what has arrived already is recognized and not
    sent twice.

    A second pull request would not be recognized: there is one attempt.
    """
    attempts = 1 if create_pr else _COMMIT_ATTEMPTS
    attempt = 1
    while True:
        # Uploading a folder may make several commits; this makes one.
        operations = [CommitOperationAdd(name, built / name) for name in files]
        try:
            return api.create_commit(
                repo_id, operations, commit_message=message, revision=revision, create_pr=create_pr
            )
        except (HTTPError, RuntimeError) as error:
            if attempt == attempts or not may_pass(error):
                raise
            seconds = seconds_to_wait(error)
            pause = f" after {seconds} seconds, as the Hub asks" if seconds else ""
            tqdm.write(f"{repo_id}: the commit has failed and is repeated{pause}")
            if seconds is not None:
                time.sleep(seconds)
            else:
                # The library's own way to wait until the Hub answers again.
                http_backoff(
                    "GET", f"{api.endpoint}/api/models/{repo_id}", headers=build_hf_headers()
                )
        attempt += 1
