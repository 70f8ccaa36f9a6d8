"""Speed of the product, as ratios: each command measures both sides, in turn, on the machine it runs on."""
