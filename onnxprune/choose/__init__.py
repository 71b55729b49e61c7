"""What to remove: options, costs, importance, sensitivity, allocation, layers."""
