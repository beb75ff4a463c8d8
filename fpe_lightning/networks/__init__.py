"""Dense, wide-sparse and FPE networks: plain ``nn.Module`` classes."""
