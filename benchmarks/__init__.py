"""What the product's speed is, as ratios: each command measures both sides, in turn, on the machine it runs on."""
