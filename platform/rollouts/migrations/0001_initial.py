
import django.db.models.deletion
import rollouts.phases
import uuid
from django.db import migrations, models


class Migration(migrations.Migration):

    initial = True

    dependencies = [
        ('accounts', '0004_key_rates'),
        ('endpoints', '0004_steering'),
        ('registry', '0005_pipeline_steps'),
    ]

    operations = [
        migrations.CreateModel(
            name='Rollout',
            fields=[
                ('id', models.UUIDField(default=uuid.uuid4, primary_key=True, serialize=False)),
                ('endpoint_name', models.CharField(max_length=64)),
                ('plan', models.JSONField()),
                ('plan_name', models.CharField(max_length=64)),
                ('plan_number', models.PositiveIntegerField(default=0)),
                ('phase', models.CharField(choices=[('pending', 'pending'), ('loading', 'loading'), ('smoke', 'smoke'), ('progressing', 'progressing'), ('paused', 'paused'), ('awaiting_approval', 'awaiting approval'), ('inconclusive', 'inconclusive'), ('promoting', 'promoting'), ('succeeded', 'succeeded'), ('aborting', 'aborting'), ('rolled_back', 'rolled back'), ('failed', 'failed')], default=rollouts.phases.Phase['PENDING'], max_length=20)),
                ('reason', models.CharField(default='started', max_length=32)),
                ('words', models.CharField(blank=True, max_length=1000)),
                ('step', models.PositiveIntegerField(default=0)),
                ('step_at', models.DateTimeField()),
                ('phase_at', models.DateTimeField()),
                ('weight_bp', models.PositiveIntegerField(default=0)),
                ('mirror_bp', models.PositiveIntegerField(default=0)),
                ('capacity', models.PositiveIntegerField(default=1)),
                ('candidate_before', models.PositiveIntegerField(default=0)),
                ('crashes_before', models.PositiveIntegerField(default=0)),
                ('device', models.CharField(default='any', max_length=16)),
                ('judged_from', models.DateTimeField(null=True)),
                ('held', models.BooleanField(default=False)),
                ('smoke', models.JSONField(null=True)),
                ('smoke_asked_at', models.DateTimeField(null=True)),
                ('approvals', models.JSONField(default=list)),
                ('preflight', models.JSONField(null=True)),
                ('override', models.CharField(blank=True, max_length=500)),
                ('judgement', models.JSONField(null=True)),
                ('judged_at', models.DateTimeField(null=True)),
                ('is_rollback', models.BooleanField(default=False)),
                ('old_stage', models.CharField(blank=True, choices=[('warm', 'Warm'), ('parked', 'Parked'), ('unloaded', 'Unloaded')], max_length=10)),
                ('old_until', models.DateTimeField(null=True)),
                ('creator', models.CharField(blank=True, max_length=200)),
                ('created_at', models.DateTimeField()),
                ('finished_at', models.DateTimeField(null=True)),
                ('revision', models.PositiveIntegerField(default=1)),
                ('events_count', models.PositiveIntegerField(default=0)),
                ('fence', models.BigIntegerField(default=0)),
                ('lease_owner', models.CharField(blank=True, max_length=100)),
                ('lease_until', models.DateTimeField(null=True)),
                ('candidate', models.ForeignKey(on_delete=django.db.models.deletion.PROTECT, related_name='rollouts_to', to='registry.version')),
                ('endpoint', models.ForeignKey(null=True, on_delete=django.db.models.deletion.SET_NULL, related_name='rollouts', to='endpoints.endpoint')),
                ('stable', models.ForeignKey(on_delete=django.db.models.deletion.PROTECT, related_name='rollouts_from', to='registry.version')),
                ('team', models.ForeignKey(on_delete=django.db.models.deletion.PROTECT, related_name='rollouts', to='accounts.team')),
            ],
            options={
                'ordering': ['-created_at'],
            },
        ),
        migrations.CreateModel(
            name='Reading',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('at', models.DateTimeField()),
                ('weight_bp', models.PositiveIntegerField(default=0)),
                ('verdict', models.CharField(max_length=12)),
                ('findings', models.JSONField()),
                ('rollout', models.ForeignKey(on_delete=django.db.models.deletion.CASCADE, related_name='readings', to='rollouts.rollout')),
            ],
            options={
                'ordering': ['at'],
            },
        ),
        migrations.CreateModel(
            name='RolloutEvent',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('seq', models.PositiveIntegerField()),
                ('at', models.DateTimeField()),
                ('actor_kind', models.CharField(max_length=12)),
                ('actor', models.CharField(max_length=200)),
                ('kind', models.CharField(max_length=32)),
                ('reason', models.CharField(max_length=32)),
                ('words', models.CharField(max_length=1000)),
                ('phase_before', models.CharField(max_length=20)),
                ('phase_after', models.CharField(max_length=20)),
                ('step', models.PositiveIntegerField(default=0)),
                ('weights_before', models.JSONField(default=dict)),
                ('weights_after', models.JSONField(default=dict)),
                ('evidence', models.JSONField(default=dict)),
                ('rollout', models.ForeignKey(on_delete=django.db.models.deletion.PROTECT, related_name='events', to='rollouts.rollout')),
            ],
            options={
                'ordering': ['rollout_id', 'seq'],
            },
        ),
        migrations.CreateModel(
            name='SavedPlan',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('name', models.SlugField(max_length=64)),
                ('number', models.PositiveIntegerField(default=1)),
                ('plan', models.JSONField()),
                ('creator', models.CharField(blank=True, max_length=200)),
                ('created_at', models.DateTimeField(auto_now_add=True)),
                ('team', models.ForeignKey(on_delete=django.db.models.deletion.CASCADE, related_name='plans', to='accounts.team')),
            ],
            options={
                'ordering': ['name', '-number'],
            },
        ),
        migrations.AddIndex(
            model_name='rollout',
            index=models.Index(fields=['phase'], name='rollouts_ro_phase_15a06f_idx'),
        ),
        migrations.AddIndex(
            model_name='rollout',
            index=models.Index(fields=['team', '-created_at'], name='rollouts_ro_team_id_328eaf_idx'),
        ),
        migrations.AddConstraint(
            model_name='rollout',
            constraint=models.UniqueConstraint(condition=models.Q(('phase__in', [rollouts.phases.Phase['ABORTING'], rollouts.phases.Phase['AWAITING_APPROVAL'], rollouts.phases.Phase['INCONCLUSIVE'], rollouts.phases.Phase['LOADING'], rollouts.phases.Phase['PAUSED'], rollouts.phases.Phase['PENDING'], rollouts.phases.Phase['PROGRESSING'], rollouts.phases.Phase['PROMOTING'], rollouts.phases.Phase['SMOKE']])), fields=('endpoint',), name='one_active_rollout_per_endpoint'),
        ),
        migrations.AddIndex(
            model_name='reading',
            index=models.Index(fields=['rollout', 'at'], name='rollouts_re_rollout_0ab799_idx'),
        ),
        migrations.AddConstraint(
            model_name='rolloutevent',
            constraint=models.UniqueConstraint(fields=('rollout', 'seq'), name='event_once_per_rollout'),
        ),
        migrations.AddConstraint(
            model_name='savedplan',
            constraint=models.UniqueConstraint(fields=('team', 'name', 'number'), name='plan_number_once'),
        ),
    ]
