import django.db.models.deletion
from django.db import migrations, models


class Migration(migrations.Migration):

    dependencies = [
        ('accounts', '0003_audit_is_append_only'),
        ('endpoints', '0001_initial'),
    ]

    operations = [
        migrations.AddField(
            model_name='variant',
            name='resting_replicas',
            field=models.PositiveIntegerField(default=0),
        ),
        migrations.CreateModel(
            name='RepositoryModel',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('name', models.SlugField(max_length=64, unique=True)),
                ('asked', models.PositiveIntegerField(default=0)),
                ('done', models.PositiveIntegerField(default=0)),
                ('reason', models.CharField(blank=True, max_length=1000)),
                ('team', models.ForeignKey(on_delete=django.db.models.deletion.CASCADE, related_name='+', to='accounts.team')),
            ],
        ),
    ]
