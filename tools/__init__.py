"""What maintainers run, from the repository's folder, as in: python -m tools.report"""
