"""CLIP's two towers and the IP-CLIP encoder, as Flax linen modules over plain parameter trees."""
