"""The database itself refuses to change what a version is, to delete one, and to rewrite an alias's history."""

from django.db import migrations

CREATE = """
CREATE FUNCTION serinus_version_guard() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF TG_OP = 'DELETE' THEN
    RAISE EXCEPTION 'a version is never deleted' USING ERRCODE = 'integrity_constraint_violation';
  END IF;
  IF (NEW.model_id, NEW.number, NEW.digest, NEW.manifest, NEW.created_at)
     IS DISTINCT FROM (OLD.model_id, OLD.number, OLD.digest, OLD.manifest, OLD.created_at) THEN
    RAISE EXCEPTION 'what version % is made of never changes', OLD.number
      USING ERRCODE = 'integrity_constraint_violation';
  END IF;
  IF OLD.status IN ('ready', 'archived') THEN
    IF (NEW.format, NEW.tier, NEW.signature, NEW.settings, NEW.served_files, NEW.report, NEW.size_bytes,
        NEW.approved_by)
       IS DISTINCT FROM (OLD.format, OLD.tier, OLD.signature, OLD.settings, OLD.served_files, OLD.report,
        OLD.size_bytes, OLD.approved_by) THEN
      RAISE EXCEPTION 'version % was validated as it is and never changes', OLD.number
        USING ERRCODE = 'integrity_constraint_violation';
    END IF;
    IF NEW.status NOT IN (OLD.status, 'archived') THEN
      RAISE EXCEPTION 'version % cannot go from % to %', OLD.number, OLD.status, NEW.status
        USING ERRCODE = 'integrity_constraint_violation';
    END IF;
  END IF;
  RETURN NEW;
END $$;
CREATE TRIGGER version_guard BEFORE UPDATE OR DELETE ON registry_version
  FOR EACH ROW EXECUTE FUNCTION serinus_version_guard();
CREATE TRIGGER alias_change_append_only BEFORE UPDATE OR DELETE ON registry_aliaschange
  FOR EACH ROW EXECUTE FUNCTION serinus_append_only();
"""
DROP = """
DROP TRIGGER alias_change_append_only ON registry_aliaschange;
DROP TRIGGER version_guard ON registry_version;
DROP FUNCTION serinus_version_guard();
"""


class Migration(migrations.Migration):
    dependencies = [
        ("registry", "0002_files_and_approval"),
        ("accounts", "0003_audit_is_append_only"),
    ]
    operations = [migrations.RunSQL(CREATE, DROP)]
