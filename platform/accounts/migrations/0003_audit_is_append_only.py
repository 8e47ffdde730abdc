"""The database itself refuses to change or delete what was written to the audit trail."""

from django.db import migrations

CREATE = """
CREATE FUNCTION serinus_append_only() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  RAISE EXCEPTION '% is append-only', TG_TABLE_NAME USING ERRCODE = 'integrity_constraint_violation';
END $$;
CREATE TRIGGER audit_append_only BEFORE UPDATE OR DELETE ON accounts_auditentry
  FOR EACH ROW EXECUTE FUNCTION serinus_append_only();
"""
DROP = """
DROP TRIGGER audit_append_only ON accounts_auditentry;
DROP FUNCTION serinus_append_only();
"""


class Migration(migrations.Migration):
    dependencies = [("accounts", "0002_login_failures")]
    operations = [migrations.RunSQL(CREATE, DROP)]
