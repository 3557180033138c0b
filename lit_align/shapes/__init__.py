"""Shapes: 64x64 scenes of coloured shapes, captions from a grammar, an exact judge and simulated annotators."""

WORLD = 2  # version of the judge and the base models: figures of two versions do not compare
