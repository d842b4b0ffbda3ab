"""Groups of commands that take no option twice, as one of the two values would be lost silently."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import typer
from typer.core import TyperCommand, TyperOption


class OnceEach(TyperCommand):
    """A command that refuses an option given twice, unless it takes several or both mean the same.

    Click takes the last value. A setting of which several are wanted is a list, so who gives two
    wants both, or has overlooked one.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the arguments. Raises UsageError for an option given twice, or text of no UTF-8."""
        *_, order = self.make_parser(ctx).parse_args(args=list(args))
        for option, times in Counter(order).items():
            if times > 1 and isinstance(option, TyperOption) and _has_one_value(option):
                name = "/".join((option.opts[0], *option.secondary_opts[:1]))
                ctx.fail(f"{name} is given {times} times: give it once")
        rest = super().parse_args(ctx, args)
        for name, value in ctx.params.items():
            for text in value if isinstance(value, (list, tuple)) else (value,):
                if isinstance(text, str) and not _is_unicode(text):
                    ctx.fail(f"{name.replace('_', '-')}: {text!r:.80} is no UTF-8")
        return rest


def _has_one_value(option: TyperOption) -> bool:
    is_switch = option.is_flag and not option.secondary_opts
    return not (option.multiple or option.count or is_switch)


def _is_unicode(text: str) -> bool:
    """Tell whether text can be encoded: Python stands in for bytes of an argument that can't."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


class CommandTree(typer.Typer):
    """A group of such commands."""

    def command(self, *names: Any, **options: Any) -> Callable[[Any], Any]:
        """Register a command, as Typer does."""
        return super().command(*names, **{"cls": OnceEach, **options})
