from django.db import migrations, models


class Migration(migrations.Migration):

    dependencies = [
        ('fleet', '0003_device_memory'),
    ]

    operations = [
        migrations.AddField(
            model_name='replica',
            name='adapters',
            field=models.JSONField(default=list),
        ),
    ]
