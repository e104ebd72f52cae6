"""Enrichment: descriptions and masks for tracks and scenes, outside the frame path and within a budget."""
