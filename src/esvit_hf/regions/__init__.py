"""What regions do: correspondence, attention, similarity, as numbers."""
