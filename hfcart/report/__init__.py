"""What readers see: model cards, tables, accuracy and figures. Pure: no network, no clock."""
