
from django.db import migrations, models


class Migration(migrations.Migration):

    dependencies = [
        ('endpoints', '0003_adapter'),
    ]

    operations = [
        migrations.AddField(
            model_name='endpoint',
            name='may_pin',
            field=models.BooleanField(default=True),
        ),
        migrations.AddField(
            model_name='endpoint',
            name='recording',
            field=models.JSONField(null=True),
        ),
        migrations.AddField(
            model_name='endpoint',
            name='steering',
            field=models.JSONField(null=True),
        ),
    ]
