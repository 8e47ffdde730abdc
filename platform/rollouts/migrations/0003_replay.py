
import django.db.models.deletion
import uuid
from django.db import migrations, models


class Migration(migrations.Migration):

    dependencies = [
        ('accounts', '0004_key_rates'),
        ('endpoints', '0004_steering'),
        ('registry', '0006_golden_inputs'),
        ('rollouts', '0002_events_are_append_only'),
    ]

    operations = [
        migrations.CreateModel(
            name='Replay',
            fields=[
                ('id', models.UUIDField(default=uuid.uuid4, primary_key=True, serialize=False)),
                ('endpoint_name', models.CharField(max_length=64)),
                ('status', models.CharField(choices=[('waiting', 'Waiting'), ('running', 'Running'), ('done', 'Done'), ('failed', 'Failed')], default='waiting', max_length=10)),
                ('words', models.CharField(blank=True, max_length=500)),
                ('comparison', models.JSONField()),
                ('max_drift_share', models.FloatField(default=0.01)),
                ('rate_per_s', models.FloatField(default=20)),
                ('records', models.JSONField()),
                ('total', models.PositiveIntegerField()),
                ('cursor', models.PositiveIntegerField(default=0)),
                ('requests', models.PositiveIntegerField(default=0)),
                ('skipped', models.PositiveIntegerField(default=0)),
                ('errors', models.PositiveIntegerField(default=0)),
                ('error_counts', models.JSONField(default=dict)),
                ('compared', models.PositiveIntegerField(default=0)),
                ('drifted', models.PositiveIntegerField(default=0)),
                ('drift_sum', models.FloatField(default=0)),
                ('latencies', models.JSONField(default=dict)),
                ('worst', models.JSONField(default=list)),
                ('creator', models.CharField(blank=True, max_length=200)),
                ('created_at', models.DateTimeField()),
                ('deadline_at', models.DateTimeField()),
                ('finished_at', models.DateTimeField(null=True)),
                ('fence', models.BigIntegerField(default=0)),
                ('lease_until', models.DateTimeField(null=True)),
                ('candidate', models.ForeignKey(on_delete=django.db.models.deletion.PROTECT, related_name='replays', to='registry.version')),
                ('endpoint', models.ForeignKey(null=True, on_delete=django.db.models.deletion.SET_NULL, related_name='replays', to='endpoints.endpoint')),
                ('team', models.ForeignKey(on_delete=django.db.models.deletion.PROTECT, related_name='replays', to='accounts.team')),
            ],
            options={
                'ordering': ['-created_at'],
                'indexes': [models.Index(fields=['status'], name='rollouts_re_status_c04264_idx'), models.Index(fields=['team', '-created_at'], name='rollouts_re_team_id_08e8d4_idx')],
                'constraints': [models.UniqueConstraint(condition=models.Q(('status__in', ['waiting', 'running'])), fields=('endpoint', 'candidate'), name='one_active_replay_per_candidate')],
            },
        ),
    ]
