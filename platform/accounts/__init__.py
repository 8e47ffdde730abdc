"""People, teams, roles, API keys and the audit trail."""
