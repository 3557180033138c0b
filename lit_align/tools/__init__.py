"""Commands that a user runs beside fit, validate, test and predict.

`python -m lit_align NAME` calls the function NAME of `tools/NAME.py`; its signature and docstring are the command's
options and help.
"""
