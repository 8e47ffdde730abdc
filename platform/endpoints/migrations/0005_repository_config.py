
from django.db import migrations, models


class Migration(migrations.Migration):

    dependencies = [
        ('endpoints', '0004_steering'),
    ]

    operations = [
        migrations.AddField(
            model_name='repositorymodel',
            name='config',
            field=models.TextField(blank=True, default=''),
        ),
    ]
