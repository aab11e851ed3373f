"""Models that leave: ONNX, torch.export and ExecuTorch."""
