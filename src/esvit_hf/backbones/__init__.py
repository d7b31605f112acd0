"""Any vision model as regions, view feature and grid."""
