"""The colours of pictures and pages: told apart with every kind of colour vision, in light and in dark."""

from __future__ import annotations

__all__ = ["DARK", "LIGHT", "SERIES"]

# name -> colour. Series after Okabe and Ito's palette, lifted for a dark ground.
LIGHT = {
    "ink": "#1b1f24",
    "faint": "#59636e",
    "grid": "#d8dee4",
    "raised": "#f3f5f8",
    "ground": "#fffffe",  # no other white: a drawing's colours are told apart by their value
    "blue": "#0072b2",
    "vermilion": "#c64a00",
    "green": "#00805f",
    "purple": "#a6467f",
    "amber": "#8f6a00",
    "sky": "#2a86b8",
}
DARK = {
    "ink": "#e6edf3",
    "faint": "#9ba6b1",
    "grid": "#30363d",
    "raised": "#1a2028",
    "ground": "#0d1117",
    "blue": "#6cb6ff",
    "vermilion": "#ff9a62",
    "green": "#45cfa4",
    "purple": "#e6a3cc",
    "amber": "#e3b341",
    "sky": "#8fd3f4",
}
SERIES = ("blue", "vermilion", "green", "purple", "amber", "sky")
