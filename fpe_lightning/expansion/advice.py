"""Where a split tends to lose accuracy: few inputs for a child, or many copies for a parent."""

from __future__ import annotations

import warnings

from fpe_lightning.expansion.report import ExpansionWarning

SHARE = 0.75
"""Copies for each incoming weight, above which a split tends to lose."""
FEWEST = 16
"""Inputs of a child, below which a split tends to lose where there are several outputs."""
FEWEST_FOR_ONE = 6
"""The same where each neuron has one outgoing weight: a formula needs few inputs together."""


def tends_to_lose(inputs: float, copies: float, alpha: int) -> bool:
    """Whether a split tends to be less accurate than its dense parent after equally long training.

    The rule separates gains from losses in the table of ``docs/results/when_it_pays.md``.

    Args:
        inputs: Incoming weights of a neuron before the split.
        copies: Parameters that each further child costs: its outgoing weights and its bias.
        alpha: Children of each neuron.

    Example:
        >>> tends_to_lose(512, 95, 4), tends_to_lose(16, 27, 2), tends_to_lose(24, 2, 2)
        (False, True, False)
    """
    return _loses(inputs / alpha, (alpha - 1) * copies / inputs, copies)


def _loses(child: float, share: float, copies: float) -> bool:
    return child < (FEWEST_FOR_ONE if copies <= 2 else FEWEST) or share > SHARE


def warn_if_costly(what: str, incoming: int, excess: int, child: float, copies: float) -> None:
    """Warn where a split tends to lose accuracy.

    Args:
        what: The site, or the sites that are pruned together.
        incoming: Their incoming weights before the split.
        excess: Copies that the split adds.
        child: Inputs of a child before weights are pruned, at the site where these are fewest.
        copies: Parameters that each further child costs.
    """
    if incoming and _loses(child, excess / incoming, copies):
        warnings.warn(
            f"Splitting {what} adds {excess} copies to {incoming} incoming weights ({excess / incoming:.0%}), and as "
            f"many weights are pruned; before that a child gets {child:.3g} inputs. With few inputs and many outputs a "
            "split tends to lose accuracy; consider a smaller alpha.",
            ExpansionWarning,
            stacklevel=4,
        )
