"""The Mask2Former family of mask-proposal generators: FreeSeg, Mask2Former and MaskFormer."""
