"""The database itself refuses to rewrite what a rollout did."""

from django.db import migrations

CREATE = """
CREATE TRIGGER rollout_event_append_only BEFORE UPDATE OR DELETE ON rollouts_rolloutevent
  FOR EACH ROW EXECUTE FUNCTION serinus_append_only();
"""
DROP = "DROP TRIGGER rollout_event_append_only ON rollouts_rolloutevent;"


class Migration(migrations.Migration):
    dependencies = [("rollouts", "0001_initial"), ("accounts", "0003_audit_is_append_only")]
    operations = [migrations.RunSQL(CREATE, DROP)]
