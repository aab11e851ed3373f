"""Fewer bits: grids and their codes, observers and calibration, GPTQ, SmoothQuant, and the stage that uses them."""
