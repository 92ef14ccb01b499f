"""Where we stand: evidence (measures), rules (pure), moves (tries), diagnosis (all of it told)."""
