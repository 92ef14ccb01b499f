"""Telling people: a record describes itself as a `Document`, the renderers here show documents."""
