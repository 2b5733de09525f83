"""How a pass through a network is computed: modes, precision, folding, CUDA graphs."""
