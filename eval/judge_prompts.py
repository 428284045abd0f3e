"""The places of a judge prompt, filled."""

import string

from simpo.console import UserError


def fill(template: str, path: str, **values: str) -> str:
    """Put values into a judge prompt's {places}.

    Raises:
        UserError: the prompt is no template, or has a place that this benchmark does not fill.
    """
    try:
        places = [name for _, name, _, _ in string.Formatter().parse(template) if name is not None]
    except ValueError as error:
        raise UserError(f"judge_prompts: {path}: {error} (braces that are text are written twice)") from error
    if strange := sorted(set(places) - values.keys()):
        raise UserError(f"judge_prompts: {path}: has a place {{{strange[0]}}} (known: {', '.join(values)})")
    return template.format(**values)


def messages(system: str, user: str) -> list[dict[str, str]]:
    """A judge's conversation; an empty system prompt is none, as some endpoints refuse an empty message."""
    return [{"role": "system", "content": system}] * bool(system) + [{"role": "user", "content": user}]
