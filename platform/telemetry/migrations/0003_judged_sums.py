
from django.db import migrations, models


class Migration(migrations.Migration):

    dependencies = [
        ('telemetry', '0002_stages_and_batch_sizes'),
    ]

    operations = [
        migrations.AddField(
            model_name='storedsample',
            name='compared',
            field=models.PositiveIntegerField(default=0),
        ),
        migrations.AddField(
            model_name='storedsample',
            name='drawn',
            field=models.PositiveIntegerField(default=0),
        ),
        migrations.AddField(
            model_name='storedsample',
            name='drift_sq',
            field=models.FloatField(default=0),
        ),
        migrations.AddField(
            model_name='storedsample',
            name='drift_sum',
            field=models.FloatField(default=0),
        ),
        migrations.AddField(
            model_name='storedsample',
            name='drifted',
            field=models.PositiveIntegerField(default=0),
        ),
        migrations.AddField(
            model_name='storedsample',
            name='dropped',
            field=models.PositiveIntegerField(default=0),
        ),
        migrations.AddField(
            model_name='storedsample',
            name='first_counts',
            field=models.JSONField(default=dict),
        ),
        migrations.AddField(
            model_name='storedsample',
            name='invalid',
            field=models.PositiveIntegerField(default=0),
        ),
        migrations.AddField(
            model_name='storedsample',
            name='next_counts',
            field=models.JSONField(default=dict),
        ),
        migrations.AddField(
            model_name='storedsample',
            name='queue_counts',
            field=models.JSONField(default=dict),
        ),
        migrations.AddField(
            model_name='storedsample',
            name='rescued',
            field=models.PositiveIntegerField(default=0),
        ),
        migrations.AddField(
            model_name='storedsample',
            name='score_sq',
            field=models.FloatField(default=0),
        ),
        migrations.AddField(
            model_name='storedsample',
            name='score_sum',
            field=models.FloatField(default=0),
        ),
        migrations.AddField(
            model_name='storedsample',
            name='scores',
            field=models.PositiveIntegerField(default=0),
        ),
    ]
