"""Tiny pipelines with random weights of video models and of models that edit images: `pretrained: tiny`.

Schedulers are the published ones. Each function is named after the diffusers pipeline it returns.
"""
