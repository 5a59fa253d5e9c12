"""`histo push`."""

from __future__ import annotations

from typing import Annotated

import typer

from histo_export.cli import show
from histo_export.cli.options import AsJson, BundleArgument, Quiet
from histo_export.errors import UsageError


def push(
    bundle: BundleArgument,
    repository: Annotated[str, typer.Argument(metavar="ORG/NAME", help="A repository of models on the hub.")],
    revision: Annotated[str | None, typer.Option(metavar="R", help="A branch.  [dim]\\[default: main][/dim]")] = None,
    create: Annotated[
        bool, typer.Option("--create", metavar="", help="Make the repository, or the branch, if there is none.")
    ] = False,
    private: Annotated[
        bool, typer.Option("--private", metavar="", help="With --create: only its owners see the repository.")
    ] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Publish a bundle on Hugging Face's hub, or on a server with the same interface (HF_ENDPOINT).

    Every sha256 of the bundle is checked before. All files come in one commit, so that no half of a bundle is ever
    there. Write the licence into README.md before you publish. histo predict hf://ORG/NAME takes it from there.
    """
    if private and not create:
        raise UsageError("--private", "is for a repository that is made now", "Add --create")
    from histo_export.export.bundle import open_bundle
    from histo_export.export.hub import push as push_bundle

    with show.status(f"checking {bundle}", quiet):
        opened = open_bundle(bundle)
    with show.status(f"sending {bundle} to {repository}", quiet):
        pushed = push_bundle(opened, repository, revision=revision, private=private, create=create)
    if as_json:
        show.print_json({"repository": pushed.repository, "commit": pushed.commit, "url": pushed.url})
        return
    show.out_console.print(f"Published: {pushed.url}", markup=False, soft_wrap=True)
    command = show.command_line("histo", "predict", f"hf://{pushed.repository}@{pushed.commit}", "slides/")
    show.out_console.print(f"Use this very version: {command}", markup=False, soft_wrap=True)
