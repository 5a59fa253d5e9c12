"""Commands as people type them: examples in the help, help for narrow terminals, and what to say of wrong use.

Typer's messages name neither the value nor the command. Here each kind of wrong use becomes a `UsageError`.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from typer.core import TyperCommand, TyperGroup, TyperOption
from typer.exceptions import TyperException

from histo_export.cli.examples import EXAMPLES
from histo_export.cli.options import integer, number
from histo_export.cli.show import NARROW
from histo_export.errors import UsageError

OPTION_SYNONYMS = {
    **dict.fromkeys(("--batch-size", "--batchsize", "--bs", "-b"), "--batch"),
    **dict.fromkeys(("--learning-rate", "--lr-max", "--rate"), "--lr"),
    **dict.fromkeys(("--n-classes", "--num-classes", "--labels", "--class-names"), "--classes"),
    **dict.fromkeys(("--gpu", "--cuda"), "--device cuda"),
    "--cpu": "--device cpu",
    **dict.fromkeys(("--output", "--output-dir", "--out-dir", "--save-dir", "--dest", "-o"), "--out"),
    **dict.fromkeys(("--dataset", "--data-dir", "--tiles", "--train-dir", "-d"), "--data"),
    **dict.fromkeys(("--num-epochs", "--n-epochs", "--max-epochs", "-e"), "--epochs"),
    **dict.fromkeys(("--ckpt", "--resume-from"), "--checkpoint"),
    **dict.fromkeys(("--pretrained", "--imagenet"), "--weights imagenet"),
    **dict.fromkeys(("--patch-size", "--image-size", "--size"), "--crop"),
    **dict.fromkeys(("--spacing", "--resolution", "--um-per-pixel", "--microns"), "--mpp"),
    **dict.fromkeys(("--overwrite", "--replace", "-f", "-y"), "--force"),
    **dict.fromkeys(("--num-workers", "--workers", "--jobs", "-j", "-t"), "--threads"),
    **dict.fromkeys(("--gpus", "--num-gpus"), "--devices"),
    **dict.fromkeys(("--backend", "--engine", "--provider"), "--runtime"),
    **dict.fromkeys(("--dtype", "--quantize", "--quantise"), "--precision"),
    **{f"--{name}": f"--precision {name}" for name in ("int8", "bf16", "fp32")},
    **dict.fromkeys(("--continue", "--restart"), "--resume"),
    "--silent": "--quiet",
    "--random-seed": "--seed",
    "--pool-size": "--pool",
    "-v": "--version",
}
"""Other tools' names → ours, where the two are not alike enough for `difflib`, or more alike to a wrong one."""

COMMAND_SYNONYMS = {
    **dict.fromkeys(("test", "check", "validate"), "verify"),
    **dict.fromkeys(("run", "infer", "inference", "classify", "apply"), "predict"),
    **dict.fromkeys(("benchmark", "time", "speed"), "bench"),
    **dict.fromkeys(("info", "show", "summary", "describe"), "inspect"),
    **dict.fromkeys(("convert", "build"), "export"),
    **dict.fromkeys(("fit", "resume"), "train"),
    **dict.fromkeys(("env", "diagnose", "runtimes", "versions"), "doctor"),
    "version": "--version",
    "completion": "--install-completion",
}
"""Other tools' names of commands → ours."""

NUMBERS: Mapping[Any, tuple[Callable[[str], Any], str]] = {
    int: (integer, "an integer"),
    float: (number, "a number"),
}
"""The types of options that are numbers → how their texts are read, and what to call them."""

CAUSES = {
    "finite number": "is not a finite number",
    "greater than or equal to ": "is below ",
    "less than or equal to ": "is above ",
}
"""Parts of Typer's messages → ours; after one that ends with a space, the limit follows in both."""


class Command(TyperCommand):
    """A command whose wrong use is a `UsageError`."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """What follows the command's name: Typer adds braces, brackets and dots to what our metavars say already."""
        arguments = (param for param in self.get_params(ctx) if not isinstance(param, TyperOption))
        return ["[OPTIONS]", *(param.metavar or param.name or "" for param in arguments)]

    def get_help_option(self, ctx: Any) -> Any:
        return _without_type(super().get_help_option(ctx))

    def format_help(self, ctx: Any, formatter: Any) -> None:
        if not _narrow_help(self, ctx):
            super().format_help(ctx, formatter)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if ctx.resilient_parsing:  # shell completion of a line that is not finished
            return super().parse_args(ctx, args)
        typed = list(args)
        values = _values(ctx, typed)
        if "" in typed:
            raise _empty(f"an argument of {ctx.command_path}")
        ctx.allow_extra_args = True  # for our own message
        try:
            rest = super().parse_args(ctx, args)
        except TyperException as error:
            raise _explained(error, ctx, typed, values) from error
        if ctx.args:
            takes = " ".join(self.collect_usage_pieces(ctx)[1:])
            cause = f"is an argument too many; {ctx.command_path} takes {takes}"
            raise UsageError(ctx.args[0], cause, _see(ctx))
        return rest


class Group(TyperGroup):
    """The program: a set of commands."""

    def get_help_option(self, ctx: Any) -> Any:
        return _without_type(super().get_help_option(ctx))

    def format_help(self, ctx: Any, formatter: Any) -> None:
        if not _narrow_help(self, ctx):
            super().format_help(ctx, formatter)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        typed = list(args)
        try:
            return super().parse_args(ctx, args)
        except TyperException as error:
            raise _explained(error, ctx, typed, {}) from error

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name = args[0]
        if not name:
            raise _empty("the command")
        if name not in self.commands and not ctx.resilient_parsing:
            known = [command for command in self.commands if not self.commands[command].hidden]
            near = COMMAND_SYNONYMS.get(name) or next(iter(difflib.get_close_matches(name.lower(), known, n=1)), None)
            hint = f"Did you mean {ctx.command_path} {near}?" if near else f"Use one of {', '.join(known)}"
            raise UsageError(name, "is not a command", hint)
        return super().resolve_command(ctx, args)


def _empty(thing: str) -> UsageError:
    """For a value without text: as a path it would be the current folder."""
    return UsageError(thing, "is empty", "Give a value; a variable of the shell that is not set becomes an empty one")


def _options(command: Any, ctx: Any) -> dict[str, TyperOption]:
    """Each name of each option of a command, as it is typed."""
    options = (param for param in command.get_params(ctx) if isinstance(param, TyperOption))
    return {name: option for option in options for name in (*option.opts, *option.secondary_opts)}


def _values(ctx: Any, args: Sequence[str]) -> Mapping[str | None, str]:
    """The name of each option that takes a value → the value as typed.

    Raises:
        UsageError: an option lacks its value (Typer would take the next option for it), has an empty one, has two
            (Typer would ignore the first), or has a text for a number (Typer would read 1_0 as 10).
    """
    options = _options(ctx.command, ctx)
    values: dict[str | None, str] = {}
    rest = iter(args)
    for arg in rest:
        if arg == "--":
            break
        name, equals, value = arg.partition("=")
        option = options.get(name)
        if option is None or option.is_flag or option.multiple or option.nargs != 1:
            continue
        if not equals:
            following = next(rest, None)
            if following is None or following in options:
                found = f", and {following} follows" if following else ""
                raise UsageError(name, f"needs a value{found}", f"Use {name} {option.metavar or 'VALUE'}. {_see(ctx)}")
            value = following
        if not value:
            raise _empty(name)
        read, kind = NUMBERS.get(option.type_descriptor.annotation, (str, ""))
        try:
            read(value)
        except ValueError:
            raise UsageError(f"{name} {value}", f"is not {kind}", _see(ctx)) from None
        except OverflowError:
            raise UsageError(f"{name} {value[:20]}…", "is too large", _see(ctx)) from None
        if values.setdefault(option.name, value) != value:
            a_list = (option.metavar or "").endswith(",…")
            hint = f"Use {name} {values[option.name]},{value}" if a_list else "Give it once"
            raise UsageError(name, f"is given twice ({values[option.name]} and {value})", hint)
    return values


def _explained(error: TyperException, ctx: Any, args: Sequence[str], values: Mapping[str | None, str]) -> UsageError:
    """What to say in place of an error of Typer, which has a class for each kind but does not offer them by name."""
    kind, param = type(error).__name__, getattr(error, "param", None)
    option: str = getattr(error, "option_name", "")
    if kind == "NoSuchOption":
        return _unknown_option(option, ctx, args)
    if kind == "BadOptionUsage":
        return UsageError(option, "takes no value", f"Use {option} alone. {_see(ctx)}")
    if param is None:
        return UsageError(ctx.command_path, error.format_message().rstrip("."), _see(ctx))
    name = param.opts[0] if isinstance(param, TyperOption) else param.metavar or param.name
    if kind == "MissingParameter":
        example = next(iter(EXAMPLES.get(ctx.command.name or "", ())), None)
        return UsageError(name, "is missing", f"For example: {example}. {_see(ctx)}" if example else _see(ctx))
    thing = f"{name} {values[param.name]}" if param.name in values else name
    return UsageError(thing, _cause(error), _see(ctx))


def _cause(error: TyperException) -> str:
    """What is wrong with a value."""
    message = error.message.rstrip(".")
    for part, cause in CAUSES.items():
        _, found, limit = message.partition(part)
        if found:
            return cause + limit if cause.endswith(" ") else cause
    return f"is refused ({message})"


def _unknown_option(option: str, ctx: Any, args: Sequence[str]) -> UsageError:
    """For an option that the command does not have: the near one, or the commands that have it."""
    # Of "-epochs 3" Typer names "-e" alone.
    typed = next((arg.partition("=")[0] for arg in args if arg.startswith(option)), option)
    known = _options(ctx.command, ctx)
    names = [name for name, param in known.items() if not param.hidden]
    wanted = OPTION_SYNONYMS.get(typed.replace("_", "-"), typed)
    cause = f"is not an option of {ctx.command_path}"
    near = (
        [wanted] if wanted.split()[0] in known else difflib.get_close_matches(typed.replace("_", "-"), names, 1, 0.75)
    )
    owners = [path for path, others in _other_commands(ctx) if wanted.split()[0] in others]
    if not near and not owners:
        near = difflib.get_close_matches(typed, names, 1)
    if near:
        return UsageError(typed, cause, f"Did you mean {near[0]}?")
    if owners:
        *others, last = owners
        subject = f"{', '.join(others)} and {last} have" if others else f"{last} has"
        return UsageError(typed, cause, f"{subject} {'it' if wanted == typed else wanted}. {_see(ctx)}")
    return UsageError(typed, cause, _see(ctx))


def _other_commands(ctx: Any) -> Iterator[tuple[str, Mapping[str, TyperOption]]]:
    """What to call each other command of the program, and its options."""
    root = ctx.find_root()
    for name, command in getattr(root.command, "commands", {}).items():
        if command is not ctx.command and not command.hidden:
            yield f"{root.command_path} {name}", _options(command, ctx)


def _see(ctx: Any) -> str:
    return f"See {ctx.command_path} --help"


def _without_type(option: Any) -> Any:
    """The option --help, for which Typer shows a type although it is a flag."""
    if option is not None:
        option.metavar = ""
    return option


def _narrow_help(command: Any, ctx: Any) -> bool:
    """On a narrow terminal prints the help with each explanation below its option; elsewhere does nothing."""
    console = Console(highlight=False)
    if console.width >= NARROW:
        return False
    console.print(command.get_usage(ctx), markup=False)
    for paragraph in (command.help or "").split("\n\n"):
        console.print("\n" + " ".join(paragraph.split()))
    panels: dict[str, list[tuple[str, str]]] = {}
    for param in command.get_params(ctx):
        if param.hidden:
            continue
        if isinstance(param, TyperOption):
            title, names = param.rich_help_panel or "Options", ", ".join((*param.opts, *param.secondary_opts))
        else:
            title, names = param.rich_help_panel or "Arguments", ""
        panels.setdefault(title, []).append((f"{names} {param.metavar or ''}".strip(), _explanation(param)))
    for name, each in getattr(command, "commands", {}).items():
        if not each.hidden:
            panels.setdefault("Commands", []).append((name, first_paragraph(each)))
    for title in sorted(panels, key=lambda title: title not in ("Arguments", "Options")):
        console.print(f"\n[b]{title}[/b]")
        for name, explanation in panels[title]:
            console.print(f"  [cyan]{escape(name)}[/]")
            console.print(Padding(explanation, (0, 0, 0, 6)))
    if command.epilog:
        console.print("\n" + command.epilog)
    return True


def first_paragraph(command: Any) -> str:
    """What a command does, on one line."""
    return " ".join((command.help or "").split("\n\n")[0].split())


def _explanation(param: Any) -> str:
    """The help of an option with its default."""
    has_default = not (param.default is None or param.default is False or param.default == "")
    default = f"default: {param.default}" if has_default and not param.required else ""
    note = "required" if param.required else default
    return f"{param.help or ''}  [dim]{escape(f'[{note}]')}[/]" if note else param.help or ""
