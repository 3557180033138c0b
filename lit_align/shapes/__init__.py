"""Shapes: 64x64 scenes of coloured shapes, captions from a grammar, an exact judge and simulated annotators."""
