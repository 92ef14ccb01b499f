"""The words of a report that a newcomer may not know, each with what it means."""

from __future__ import annotations

from thalweg.report.document import Document, Facts, Note, Table

__all__ = ["words_in"]

_WORDS = {
    "held-out": "data kept apart: no part of training, nor of finding a direction, so they can confirm it",
    "curvature": "how fast the slope changes along a direction; below zero the loss bends down both ways",
    "λmax": "the largest curvature of the training loss over all directions",
    "λmin": "the lowest one; below zero there is a way down that the slope does not show",
    "‖g‖": "the size of the gradient: the slope in its steepest direction",
    "noise scale": "the batch size at which the slope and the noise of the batches are about equal",
    "generalisation": "how the loss on held-out data compares with that on the training data",
    "gradient-equivalent": "the unit of cost: one forward and backward pass over the examples used",
    "Hessian–vector product": "the change of the gradient along one direction: how curvature is measured",
    "99% confidence": "one random start of the measurement in a hundred may miss more than is said",
}


def words_in(document: Document) -> tuple[tuple[str, str], ...]:
    """Return (word, meaning) for the words that ``document`` uses."""
    text = " ".join(_texts(document))
    return tuple((word, meaning) for word, meaning in _WORDS.items() if word in text)


def _texts(document: Document) -> list[str]:
    found = []
    for block in document.blocks:
        match block:
            case Note(text, _):
                found.append(text)
            case Facts(rows):
                found += [f"{label} {text}" for label, text in rows]
            case Table(title, columns, _):
                found += [title, *columns]
            case _:
                pass
    return found
