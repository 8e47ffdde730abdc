import django.db.models.deletion
from django.db import migrations, models


class Migration(migrations.Migration):

    dependencies = [
        ('endpoints', '0002_model_repository'),
        ('registry', '0005_pipeline_steps'),
    ]

    operations = [
        migrations.CreateModel(
            name='Adapter',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('name', models.SlugField(max_length=64)),
                ('created_at', models.DateTimeField(auto_now_add=True)),
                ('variant', models.ForeignKey(on_delete=django.db.models.deletion.CASCADE, related_name='adapters', to='endpoints.variant')),
                ('version', models.ForeignKey(on_delete=django.db.models.deletion.PROTECT, related_name='adapter_of', to='registry.version')),
            ],
            options={
                'ordering': ['name', 'id'],
                'constraints': [models.UniqueConstraint(fields=('variant', 'name'), name='adapter_once_per_variant')],
            },
        ),
    ]
