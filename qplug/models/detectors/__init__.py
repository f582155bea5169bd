"""Mask R-CNN and Cascade Mask R-CNN on timm's Swin, which compute what MMDetection's do."""
