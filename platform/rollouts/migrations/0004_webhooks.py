
import django.db.models.deletion
import uuid
from django.db import migrations, models


class Migration(migrations.Migration):

    dependencies = [
        ('accounts', '0004_key_rates'),
        ('rollouts', '0003_replay'),
    ]

    operations = [
        migrations.CreateModel(
            name='Webhook',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('url', models.CharField(max_length=1000)),
                ('secret', models.CharField(max_length=100)),
                ('events', models.JSONField(default=list)),
                ('enabled', models.BooleanField(default=True)),
                ('creator', models.CharField(blank=True, max_length=200)),
                ('created_at', models.DateTimeField(auto_now_add=True)),
                ('team', models.ForeignKey(on_delete=django.db.models.deletion.CASCADE, related_name='webhooks', to='accounts.team')),
            ],
        ),
        migrations.CreateModel(
            name='WebhookDelivery',
            fields=[
                ('id', models.UUIDField(default=uuid.uuid4, primary_key=True, serialize=False)),
                ('event', models.CharField(max_length=64)),
                ('body', models.TextField()),
                ('attempt', models.PositiveIntegerField(default=0)),
                ('status', models.PositiveIntegerField(null=True)),
                ('response', models.CharField(blank=True, max_length=500)),
                ('took_ms', models.FloatField(null=True)),
                ('state', models.CharField(choices=[('pending', 'Pending'), ('delivered', 'Delivered'), ('given_up', 'Given up')], default='pending', max_length=12)),
                ('at', models.DateTimeField(auto_now_add=True)),
                ('next_at', models.DateTimeField()),
                ('done_at', models.DateTimeField(null=True)),
                ('webhook', models.ForeignKey(on_delete=django.db.models.deletion.CASCADE, related_name='deliveries', to='rollouts.webhook')),
            ],
            options={
                'ordering': ['-at', 'id'],
                'indexes': [models.Index(condition=models.Q(('state', 'pending')), fields=['next_at'], name='deliveries_that_are_due'), models.Index(fields=['webhook', '-at'], name='rollouts_we_webhook_93e5fc_idx')],
            },
        ),
    ]
